"""Which random views protocols see, and whether the data can be augmented at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysurl import health
from raysurl.data.dataset import Samples
from raysurl.data.source import Source
from raysurl.embed import Augmented, embed
from raysurl.errors import InputError
from raysurl.recipe import Recipe
from raysurl.spectra import lidar
from raysurl.views import POLICIES, named_policy
from raysurl.views.policies import Policy

ALIGNED = 512  # samples whose views are compared
ALIGNED_VIEWS = 4  # of each of them
SETTING = {"neighbours": "neighbours_views"}  # of other protocols: linear_augment, finetune_augment


def disturbing(recipe: Recipe, name: str) -> Augmented:
    """The views of test images by which their neighbours are disturbed."""
    return Augmented(policy_of(recipe, name).model_copy(update={"size": None}), 0)


def aligned_names(recipe: Recipe) -> set[str]:
    """What `alignment` will yield."""
    return set() if disturbing(recipe, "views").policy.is_identity else {"health/alignment", "health/lidar"}


def alignment(
    encoder: nn.Module, recipe: Recipe, source: Source, device: torch.device, bank: NDArray[np.int64]
) -> dict[str, float]:
    """`health/alignment` of two of the run's own views and `health/lidar` of four, on rank 0; empty where none is
    random. All ranks call it."""
    if not aligned_names(recipe):
        return {}
    count = min(ALIGNED, len(bank))
    some = bank[np.arange(count) * len(bank) // count]
    views = [replace(disturbing(recipe, "views"), epoch=epoch) for epoch in range(ALIGNED_VIEWS)]
    found = [embed(encoder, source, recipe, device, some, view) for view in views]
    if not len(found[0]):
        return {}
    return {
        "health/alignment": health.alignment(found[0], found[1]),
        "health/lidar": lidar(torch.stack(found)),
    }


def check_views(recipe: Recipe, samples: Samples) -> None:
    """Raises InputError for vectors under a protocol that augments."""
    settings = recipe.eval
    asked: dict[str, list[str | None]] = {
        "linear": [settings.linear_probe.augment],
        "finetune": [t.augment for t in settings.tunings.values()],
        "neighbours": [*settings.neighbours_views],
    }
    for protocol, policies in asked.items():
        random = any(not policy_of(recipe, name).is_identity for name in policies)
        if protocol in settings.protocols and random and samples.width():
            raise InputError(
                f"the protocol {protocol} takes augmented views here, and {recipe.data.name} holds vectors, which"
                f" cannot be augmented; use eval.{SETTING.get(protocol, f'{protocol}_augment')}=plain"
            )


def policy_of(recipe: Recipe, name: str | None) -> Policy:
    """That of `augment` of a probe; `views` is the first of the run's own that crops at random."""
    if name != "views":
        return named_policy(name or "plain")
    own = [policy for policy in recipe.view_policies().values() if policy.crop]
    return own[0] if own else POLICIES["plain"]
