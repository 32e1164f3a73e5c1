"""Views: batched augmentation whose randomness is a function of (seed, step, view name, position) only.

`draws.draw` makes the parameters of the whole global batch, `augment.apply` uses the part that stands at this rank's
positions, `augmenter.Augment` does both for every view of a run. The same samples are therefore augmented alike,
whatever the number of ranks, their order, or the device.
"""

from raysurl.views.policies import POLICIES, Policy, named_policy

__all__ = ["POLICIES", "Policy", "named_policy"]
