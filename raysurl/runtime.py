"""What the trainer needs to know of where it runs; this is the local twin of raysurl.scale.train.RayRuntime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysurl.errors import InputError
from raysurl.memory.record import MemoryRecord

MOST_THREADS = 8  # that the host's part of a step on a GPU can use


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
        torch.ones(1, device=device).item()  # a device like meta computes nothing
    except (RuntimeError, AssertionError) as error:  # of a torch that was built without it
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"device={name!r} cannot be used ({reason}); choose cpu, or cuda where there is one"
        ) from None
    return device


def threads_of(chosen: int | None, device: torch.device) -> int:
    """CPU threads of a process that trains on `device`, where the recipe has `chosen`, or leaves it open."""
    if chosen or device.type != "cuda":
        return chosen or 1
    share = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    return max(1, min(share, MOST_THREADS))


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def torch_as_it_starts() -> Iterator[None]:
    """torch as a new process has it, whatever this one has set, which holds again after the block.

    The number of threads (a run sets its own), the default type and device, the rounding of fp32 products, gradients,
    inference mode and autocast: a result depends on none of them.
    """
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    of_cpu: Any = torch.backends.mkldnn
    backends: list[Any] = [torch.backends.cuda.matmul, of_cpu.matmul]
    of_each = [backend.fp32_precision for backend in backends]
    try:
        of_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # they differ, as only each of them can be set
        of_all = "highest"
    with contextlib.ExitStack() as stack:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        try:
            for context in _off():
                stack.enter_context(context)
            yield
        finally:
            torch.set_float32_matmul_precision(of_all)
            for backend, precision in zip(backends, of_each, strict=True):
                backend.fp32_precision = precision
            torch.set_default_dtype(kind)
            torch.set_num_threads(threads)


def _off() -> Iterator[contextlib.AbstractContextManager[Any]]:
    """What ends that which is on in this thread; a default device slows each call down, so that none is set in vain."""
    if torch.get_default_device().type != "cpu":
        yield torch.device("cpu")
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
    if not torch.is_grad_enabled():
        yield torch.enable_grad()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            yield torch.autocast(device, enabled=False)
