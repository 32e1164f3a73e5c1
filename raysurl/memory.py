"""What methods remember between steps: a FIFO queue and a bank addressed by sample index.

Ordinary classes on torch tensors; the memory actor of raysurl.scale is one of these, wrapped.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysurl.errors import InputError
from raysurl.method import Answer, Progress, Snapshot


class Queue:
    """FIFO ring of `size` key vectors; starts as normalised Gaussian vectors with index −1 (MoCo, ReSSL sec. 3.2).

    `features` (K, D) fp32 unit rows, `index` (K,) int64 sample index of each entry, −1 = not yet filled.
    """

    answers: ClassVar[bool] = False

    def __init__(
        self, size: int, dim: int, *, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        if size < 1 or dim < 1:
            raise InputError(f"a queue needs a size and a dimension of at least 1, got {size} × {dim}")
        generator = torch.Generator().manual_seed(seed)
        self.features = F.normalize(torch.randn(size, dim, generator=generator), dim=1).to(device)
        self.index = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.pointer: int | Tensor = (
            0  # where the next key goes; on a GPU a tensor, for steps that are recorded
        )

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

    def answer(self, index: Tensor, step: int) -> Answer:
        return {}

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        """Nothing in it depends on the whole data set."""

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        return {}

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


class Bank:
    """One vector per sample, updated as an exponential average (non-parametric classifier; Super-AND eq. 1-2).

    `features` (N, D), initialised U(−√(3/D), √(3/D)) and not normalised until first written.
    """

    answers: ClassVar[bool] = False

    def __init__(
        self,
        num_samples: int,
        dim: int,
        *,
        momentum: float,
        tau: float,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if num_samples < 1 or dim < 1:
            raise InputError(f"a bank needs at least one sample and one dimension, got {num_samples} × {dim}")
        bound = (3 / dim) ** 0.5
        generator = torch.Generator().manual_seed(seed)
        self.features = ((torch.rand(num_samples, dim, generator=generator) * 2 - 1) * bound).to(device)
        self.momentum, self.tau = momentum, tau

    def logits(self, v: Tensor) -> Tensor:
        """v (B, D) · every entry / τ -> (B, N)."""
        return v @ self.features.T / self.tau

    @torch.no_grad()
    def update(self, index: Tensor, v: Tensor) -> None:
        """m ← normalise(momentum·m + (1 − momentum)·v) at rows `index` (B,); of a repeated index the last row wins.

        Raises InputError for an index outside the bank; on a GPU, where looking would wait, torch's own assertion does.
        """
        outside = index.device.type == "cpu" and index.numel()
        if outside and (int(index.min()) < 0 or int(index.max()) >= len(self.features)):
            raise InputError(f"a sample index lies outside the bank's 0 … {len(self.features) - 1}")
        index, v = index.to(self.features.device), v.to(self.features)
        rows = torch.arange(len(index), device=index.device)
        last = torch.full((len(self.features),), -1, device=index.device).scatter_reduce_(
            0, index, rows, "amax"
        )
        v = v[last[index]]  # so that repeated rows write the same, as scatter has no defined order on CUDA
        mixed = self.momentum * self.features[index] + (1 - self.momentum) * v
        self.features[index] = F.normalize(mixed, dim=1)

    def push(self, keys: Tensor, index: Tensor) -> None:
        self.update(index, keys)

    def snapshot(self) -> Snapshot:
        return {"features": self.features}

    def answer(self, index: Tensor, step: int) -> Answer:
        return {}

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        """Nothing in it depends on the whole data set."""

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        return {}

    def mirror(self, device: torch.device) -> Bank:
        copy = Bank(1, self.features.shape[1], momentum=self.momentum, tau=self.tau)
        copy.features = self.features.to(device, copy=True)
        return copy

    def state_dict(self) -> dict[str, Any]:
        return {"features": self.features.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["features"].shape != self.features.shape:
            raise InputError(
                f"the stored bank is {tuple(state['features'].shape)}, this run's {tuple(self.features.shape)}"
            )
        self.features.copy_(state["features"])
