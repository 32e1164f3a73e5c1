"""Views made on a GPU: parameters prepared a step ahead in a thread, then one copy and one recorded graph a step.

What fits on the device is copied there once and for all, so that a step's images never travel.

Letters: b images, P numbers in all views' rows of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raysurl.data.prefetch import prefetch
from raysurl.data.source import Images, ResidentSource, Source
from raysurl.errors import first_line
from raysurl.method import Batch
from raysurl.recipe import Recipe
from raysurl.sampler import Request
from raysurl.train.recording import CudaGraph, StepRecorder
from raysurl.views.augmenter import Augment
from raysurl.views.draws import draw
from raysurl.views.fixed import FixedView
from raysurl.views.geometry import resize_each

RESIDENT_SHARE = 0.25  # of the device's free memory that a copy of all images may take
WARM_STEPS = 2


@dataclass(frozen=True)
class HostBatch:
    """What a step's views need of the host: `block`, bytes of the indices (b,) and then of all rows (b, P); and the
    images, (b, C, H, W) for all views, or cropped ones by view, or none where all are on the device."""

    block: Tensor
    images: dict[str, Tensor]


class DeviceViews:
    """Makes the batches of one rank on its device. Tensors of a batch stand where those of the last one stood."""

    def __init__(
        self,
        augment: Augment,
        source: Source,
        device: torch.device,
        *,
        channels_last: bool,
        say: Callable[[str], None],
        new_graph: Callable[[], StepRecorder] | None = CudaGraph,
        free: int | None = None,
    ) -> None:
        """`new_graph` None: never record. `free`: bytes of the device that are free, measured where not given."""
        self.augment, self.source, self.device, self.say = augment, source, device, say
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.new_graph = new_graph
        self.resident = self._resident(free)
        self._views: dict[tuple[int, int] | None, dict[str, FixedView]] = {}
        self._shape: object = None
        self._graph: StepRecorder | None = None

    # ---------------------------------------------------------------- on the host, in a thread

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Request, HostBatch]]:
        """Each request with what the host prepares for it, in order, one or two steps ahead."""
        if self.resident is None:
            return self.source.batches(requests, self._prepared)
        return prefetch(self._prepared(request, None) for request in requests)

    def _prepared(self, request: Request, images: Images | None) -> tuple[Request, HostBatch]:
        size = self._source_size(images)
        rows, cropped = [], {}
        for name, view in self._views_of(size).items():
            draws = draw(
                view.policy, self.augment.batch_size, seed=self.augment.seed, step=request.step, view=name
            )
            draws = draws[request.rows]
            rows.append(view.rows(draws))
            if isinstance(images, list):
                heights, widths = (np.array([image.shape[d] for image in images]) for d in (1, 2))
                boxes = view.boxes(draws, heights, widths)
                cropped[name] = resize_each(images, boxes, view.size, view.policy.interpolation)
        table = np.concatenate(rows, axis=1).view(np.uint8).reshape(-1)
        block = torch.from_numpy(np.concatenate([request.index.view(np.uint8), table]))
        shared = {"": images} if isinstance(images, Tensor) else cropped
        return request, HostBatch(self._pinned(block), {name: self._pinned(x) for name, x in shared.items()})

    def _source_size(self, images: Images | None) -> tuple[int, int] | None:
        """Height and width of the images, where all have one and the device crops them."""
        tensor = self.resident if images is None else images
        return (tensor.shape[2], tensor.shape[3]) if isinstance(tensor, Tensor) else None

    def _views_of(self, size: tuple[int, int] | None) -> dict[str, FixedView]:
        a = self.augment
        if size not in self._views:
            self._views[size] = {
                name: FixedView(policy, size=a.size, mean=a.mean, std=a.std, source=size)
                for name, policy in a.policies.items()
            }
        return self._views[size]

    def _pinned(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
        return x.pin_memory() if self.device.type == "cuda" else x

    # ---------------------------------------------------------------- on the device

    def batch(self, prepared: HostBatch) -> Batch:
        """The views and indices; they stay as they are until the next call."""
        shape = (len(prepared.block), tuple((name, x.shape) for name, x in prepared.images.items()))
        if shape != self._shape:
            self._begin(prepared)
            self._shape = shape
        self._block.copy_(prepared.block, non_blocking=True)
        for name, x in prepared.images.items():
            self._images[name].copy_(x, non_blocking=True)
        self._make()
        return Batch(self._index, dict(self._out))

    def _begin(self, prepared: HostBatch) -> None:
        """Places for a batch of this shape."""
        self._graph, self._warm = None, 0
        self._block = torch.empty_like(prepared.block, device=self.device)
        self._images = {n: torch.empty_like(x, device=self.device) for n, x in prepared.images.items()}
        shared = self._images.get("", self.resident)
        size = self._source_size(shared if shared is not None else [])
        self._now = self._views_of(size)
        numbers = [sum(view.widths.values()) for view in self._now.values()]
        count = len(prepared.block) // (8 + 4 * sum(numbers))
        self._index = self._block[: 8 * count].view(torch.int64)
        table = self._block[8 * count :].view(torch.float32).view(count, sum(numbers))
        self._rows = dict(zip(self._now, table.split(numbers, dim=1), strict=True))
        self._out = {
            name: torch.empty(count, 3, view.size, view.size, device=self.device).to(
                memory_format=self.format
            )
            for name, view in self._now.items()
        }

    def _make(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self.new_graph is None:
            self._run()
        elif self._warm < WARM_STEPS:
            self._warm += 1
            self.new_graph().aside(self._run)
        else:
            self._record()

    def _record(self) -> None:
        assert self.new_graph is not None
        graph = self.new_graph()
        try:
            graph.record(self._run)
        except Exception as error:  # whatever a library finds that it cannot do while it is recorded
            self.new_graph = None
            self.say(f"views are made eagerly, not by a CUDA graph: {first_line(error)}")
            return self._run()
        self._graph = graph
        self.say("views are recorded as a CUDA graph")
        return graph.replay()

    def _run(self) -> None:
        shared = self._images.get("")
        if shared is None and self.resident is not None:
            shared = self.resident[self._index]
        for name, view in self._now.items():
            images = self._images[name] if shared is None else shared
            view(images, self._rows[name], self._out[name])

    def _resident(self, free: int | None) -> Tensor | None:
        """All images on the device, where they are in memory, of one size, and small enough."""
        if not isinstance(self.source, ResidentSource) or self.source.gather.shape is None:
            return None
        shards = [shard.pixels for shard in self.source.gather.shards]
        if free is None:
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
        needed = sum(pixels.nbytes for pixels in shards)
        if needed > RESIDENT_SHARE * free:
            return None
        self.say(f"all images are kept on the device, {needed / 1e9:.2f} GB")
        return torch.cat([torch.from_numpy(pixels).to(self.device) for pixels in shards])


def device_views(
    recipe: Recipe, device: torch.device, source: Source, augment: Augment, say: Callable[[str], None]
) -> DeviceViews | None:
    """Where views are made on a GPU by operations of fixed shapes; None where `Augment` makes them as on a CPU."""
    if device.type != "cuda" or recipe.views.device != "trainer" or recipe.encoder.name == "mlp":
        return None
    if unfixed := [name for name, policy in augment.policies.items() if policy.randaugment]:
        say(f"views are made operation by operation: {', '.join(unfixed)} asks for RandAugment")
        return None
    graph: Callable[[], StepRecorder] | None = None if recipe.train.cuda_graph is False else CudaGraph
    make = partial(DeviceViews, augment, source, device, channels_last=recipe.channels_last(device), say=say)
    return make(new_graph=graph)
