"""What the trainer needs to know of where it runs; this is the local twin of raysurl.scale.train.RayRuntime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysurl.errors import InputError
from raysurl.memory.record import MemoryRecord


class Runtime(Protocol):
    name: str
    rank: int
    world_size: int
    device: torch.device
    record: MemoryRecord | None  # the memory actor, on rank 0 under Ray; else None

    def report(self, metrics: dict[str, Any]) -> None:
        """Tell whoever watches the run, once per epoch; every rank calls it."""


@dataclass
class LocalRuntime:
    """One process, no Ray; memory lives in-process."""

    device: torch.device
    name: str = "local"
    rank: int = 0
    world_size: int = 1
    record: MemoryRecord | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        """Nobody else watches: metrics.jsonl is the record."""


def named_device(name: str) -> torch.device:
    """Raises InputError for a device that torch does not know or that is not here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # of a torch that was built without it
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"device={name!r} cannot be used ({reason}); choose cpu, or cuda where there is one"
        ) from None
    return device


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
