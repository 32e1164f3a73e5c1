"""A trained encoder in the forms that other programs read, each compared with the original before it stands there."""

from raysurl.export.asked import TARGETS, Asked, asked_for
from raysurl.export.writing import Written, write

__all__ = ["TARGETS", "Asked", "Written", "asked_for", "write"]
