"""Super-AND: unsupervised embedding learning from neighbourhoods, round by round."""

from raysurl.methods.superand.memory import discover
from raysurl.methods.superand.method import (
    SuperAND,
    and_loss,
    augmentation_loss,
    unification_entropy,
)

__all__ = ["SuperAND", "and_loss", "augmentation_loss", "discover", "unification_entropy"]
