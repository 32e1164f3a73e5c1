"""A bank: one vector per sample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl import streams
from raysurl.errors import InputError
from raysurl.memory.base import Memory
from raysurl.method import Snapshot


class Bank(Memory):
    """One vector per sample, updated as an exponential average (non-parametric classifier; Super-AND eq. 1-2).

    `features` (N, D), initialised U(−√(3/D), √(3/D)) and not normalised until first written.
    """

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
        generator = streams.torch_stream(seed, "bank")
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
