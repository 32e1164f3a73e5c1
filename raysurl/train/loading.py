"""From the plan to batches on the trainer's device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from raysurl.data.source import Images, Source
from raysurl.method import Batch
from raysurl.recipe import Recipe
from raysurl.runtime import Runtime
from raysurl.sampler import Plan, Request, plan
from raysurl.train.device_views import DeviceViews, HostBatch
from raysurl.views.augmenter import Augment
from raysurl.views.colour import to_device

_FIRST_WINDOW = 4096  # samples, with recipe.streams=1

Loaded = tuple[Request, Any]  # a request with its raw images or, with views.device=workers, its views


def plan_of(recipe: Recipe, source: Source) -> Plan:
    """The run's order, and the one place that says how streaming samples are shuffled."""
    first = recipe.streams == 1 and source.mode == "streaming"  # such runs began with windows of neighbours
    return plan(
        source.readable,
        batch_size=recipe.train.batch_size,
        seed=recipe.stream_seed,
        window=recipe.data.window or _FIRST_WINDOW if first else None,
        windows=None if first else source.windows,
    )


@dataclass(frozen=True)
class Loader:
    """This rank's part of every step: read by the source, augmented where the recipe says."""

    recipe: Recipe
    runtime: Runtime
    source: Source
    plan: Plan
    augment: Augment
    on_device: DeviceViews | None = None  # makes the views on a GPU

    def steps(self, first: int, last: int) -> Iterator[tuple[list[Loaded], float]]:
        """The micro-batches of each of the steps first … last−1, with the seconds spent waiting for them."""
        accumulate, in_workers = self.recipe.train.accumulate, self.recipe.views.device == "workers"
        requests = self.plan.requests(
            first, last, rank=self.runtime.rank, world_size=self.runtime.world_size, accumulate=accumulate
        )
        items: Iterator[Loaded]
        if self.on_device:
            items = self.on_device.batches(requests)
        else:
            items = self.source.batches(
                requests, partial(_with_views, self.augment) if in_workers else _as_read
            )
        loaded: list[Loaded] = []
        since = time.perf_counter()
        for item in items:
            loaded.append(item)
            if len(loaded) == accumulate:
                yield loaded, time.perf_counter() - since
                loaded, since = [], time.perf_counter()

    def to_batch(self, loaded: Loaded) -> Batch:
        """Views and indices on the trainer's device, which may stand where those of the last batch stood."""
        request, data = loaded
        device = self.runtime.device
        if self.on_device and isinstance(data, HostBatch):
            batch = self.on_device.batch(data)
            split = self.recipe.train.accumulate > 1  # indices of all parts are used at the end of the step
            return replace(batch, index=batch.index.clone()) if split else batch
        if self.recipe.views.device == "trainer":
            data = self.augment(request, data, device)
        views = {name: to_device(x, device) for name, x in data.items()}
        if self.recipe.channels_last(device):
            views = {
                name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
                for name, x in views.items()
            }
        return Batch(to_device(request.index, device), views)


def _as_read(request: Request, images: Images) -> Loaded:
    return request, images


def _with_views(augment: Augment, request: Request, images: Images) -> Loaded:
    return request, augment(request, images)
