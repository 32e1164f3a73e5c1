"""What the trainer needs to know of where it runs; this is the local twin of raysurl.scale.train.RayRuntime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysurl.memory_link import Record


class Runtime(Protocol):
    name: str
    rank: int
    world_size: int
    device: torch.device
    record: Record | None  # the memory actor, on rank 0 under Ray; else None

    def report(self, metrics: dict[str, Any]) -> None:
        """Tell whoever watches the run, once per epoch; every rank calls it."""


@dataclass
class LocalRuntime:
    """One process, no Ray; memory lives in-process."""

    device: torch.device
    name: str = "local"
    rank: int = 0
    world_size: int = 1
    record: Record | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        """Nobody else watches: metrics.jsonl is the record."""


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
