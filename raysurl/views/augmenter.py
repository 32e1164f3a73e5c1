"""All views of a batch, as the recipe has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raysurl.views.augment import Images, apply, are_vectors, check_policy, untouched
from raysurl.views.draws import draw
from raysurl.views.policies import Policy

if TYPE_CHECKING:
    from raysurl.sampler import Request


class ViewSettings(Protocol):
    """The part of the recipe's `views` section that every view shares."""

    @property
    def size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...


class Augment:
    """Makes all views of a part of a global batch. Holds plain values only, so it can be pickled."""

    def __init__(
        self, policies: Mapping[str, Policy], views_settings: ViewSettings, seed: int, batch_size: int
    ) -> None:
        """`policies` view name -> policy; `batch_size` B of the global batch.

        Raises InputError for a blur wider than its view.
        """
        self.policies = dict(policies)
        self.size = views_settings.size
        self.mean = views_settings.mean
        self.std = views_settings.std
        self.seed = seed
        self.batch_size = batch_size
        for view, policy in self.policies.items():
            check_policy(policy, self.size, f"views.policies.{view}")

    def __call__(
        self, request: Request, images: Images, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """View name -> (b, 3, S, S) float32 on `device` for the b samples of `request`, in its order.

        `images` are the samples themselves, or (b, D) float vectors, which views leave as they are.
        """
        positions = slice(request.start, request.start + len(request.index))
        if len(images) != len(request.index) or positions.stop > self.batch_size:
            raise ValueError(
                f"{len(images)} images do not fit {len(request.index)} samples at position {request.start}"
                f" of a global batch of {self.batch_size}"
            )
        if are_vectors(images):
            return {view: untouched(policy, images, device) for view, policy in self.policies.items()}
        views = {}
        for view, policy in self.policies.items():
            draws = draw(policy, self.batch_size, seed=self.seed, step=request.step, view=view)[positions]
            views[view] = apply(
                policy, images, draws, size=self.size, mean=self.mean, std=self.std, device=device
            )
        return views
