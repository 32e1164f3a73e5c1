"""A FIFO queue of keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl import streams
from raysurl.errors import InputError
from raysurl.memory.base import Memory
from raysurl.method import Snapshot


class Queue(Memory):
    """FIFO ring of `size` key vectors; starts as normalised Gaussian vectors with index −1 (MoCo, ReSSL sec. 3.2).

    `features` (K, D) fp32 unit rows, `index` (K,) int64 sample index of each entry, −1 = not yet filled.
    """

    def __init__(
        self, size: int, dim: int, *, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        if size < 1 or dim < 1:
            raise InputError(f"a queue needs a size and a dimension of at least 1, got {size} × {dim}")
        generator = streams.torch_stream(seed, "queue")
        self.features = F.normalize(torch.randn(size, dim, generator=generator), dim=1).to(device)
        self.index = torch.full((size,), -1, dtype=torch.int64, device=device)
        # where the next key goes; on a GPU a tensor, for steps that are recorded
        self.pointer: int | Tensor = 0

    @torch.no_grad()
    def push(self, keys: Tensor, index: Tensor | None = None) -> None:
        """Overwrite the oldest entries with keys (B, D), first row oldest; wraps around; keeps the last K if B > K.

        `index` (B,) int64 are the sample indices, −1 where omitted. Raises InputError on a wrong width.
        """
        size, dim = self.features.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise InputError(f"keys of shape {tuple(keys.shape)} do not fit a queue of dimension {dim}")
        if index is None:
            index = torch.full((len(keys),), -1, dtype=torch.int64)
        start = self.pointer + max(len(keys) - size, 0)
        keys, index = keys[-size:], index[-size:]
        slots = (start + torch.arange(len(keys), device=self.features.device)) % size
        self.features[slots] = keys.to(self.features)
        self.index[slots] = index.to(self.index)
        self._move_to((start + len(keys)) % size)

    def _move_to(self, pointer: int | Tensor) -> None:
        if isinstance(self.pointer, Tensor):
            self.pointer.copy_(torch.as_tensor(pointer))
        else:
            self.pointer = int(pointer)

    def snapshot(self) -> Snapshot:
        return {"features": self.features, "index": self.index}

    def mirror(self, device: torch.device) -> Queue:
        """A queue of the same content on `device`."""
        copy = Queue(1, self.features.shape[1])
        copy.features, copy.index = self.features.to(device, copy=True), self.index.to(device, copy=True)
        copy.pointer = self.pointer if device.type == "cpu" else torch.tensor(int(self.pointer)).to(device)
        return copy

    def state_dict(self) -> dict[str, Any]:
        return {
            "features": self.features.cpu().clone(),
            "index": self.index.cpu().clone(),
            "pointer": int(self.pointer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["features"].shape != self.features.shape:
            raise InputError(
                f"the stored queue is {tuple(state['features'].shape)}, this run's {tuple(self.features.shape)}"
            )
        self.features.copy_(state["features"])
        self.index.copy_(state["index"])
        self._move_to(int(state["pointer"]))
