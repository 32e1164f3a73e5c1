"""Run a function on several gloo ranks, each a process of its own, and collect what each returns."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """[function(rank, *args) of each rank]; what they return must be tensors and plain containers."""
    # what all of them import is imported once, by the process that they are forked from
    multiprocessing.set_forkserver_preload(["torch", "raysurl.train.trainer"])
    with tempfile.TemporaryDirectory() as folder:
        entry = (function, world_size, folder, args)
        start_processes(_entry, args=entry, nprocs=world_size, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _entry(
    rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
