"""What methods and the trainer need of the other ranks; every function falls through without a process group."""

from __future__ import annotations

import contextlib
import inspect
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def joined_rows(x: Tensor) -> int:
    """How many rows `gather` makes of this rank's rows x (b, …)."""
    return len(x) * world_size()


def own_rows(x: Tensor) -> Tensor:
    """Where this rank's rows x (b, …) stand among those that `gather` joins: (b,) int64 on x's device."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """(b, …) on each rank -> (W·b, …) in rank order, without gradient; shapes must agree."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """Sum of a small tensor over ranks, the same bits on all of them.

    A gather and a local sum: on gloo that takes a fifth of the time of an all-reduce of a few hundred numbers.
    """
    return x if world_size() == 1 else gather(x[None]).sum(dim=0)


def mean(x: Tensor) -> Tensor:
    """Mean of a small tensor over ranks."""
    return total(x) / world_size()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Each rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_with_gradient(x: Tensor) -> Tensor:
    """(b, …) -> (W·b, …) in rank order; the gradient is summed over ranks.

    A loss of the gathered batch that every rank computes alike then has, after DDP's mean over ranks, the
    gradient of the same loss on one device.
    """
    if world_size() == 1:
        return x
    out: Tensor = _GatherWithGradient.apply(x)
    return out


@torch.no_grad()
def shuffle(x: Tensor, order: Tensor) -> Tensor:
    """This rank's rows of the global batch in `order` (B,), which all ranks agree on (shuffle-BN, MoCo)."""
    return gather(x)[order[rank() * len(x) : (rank() + 1) * len(x)].to(x.device)]


@torch.no_grad()
def unshuffle(x: Tensor, order: Tensor) -> Tensor:
    """Undo `shuffle` with the same order."""
    return shuffle(x, torch.argsort(order))


def wrap(model: nn.Module, device: torch.device, ranks: int, *, accumulates: bool = False) -> nn.Module:
    """The model under DDP where there are several ranks.

    On GPUs gradients lie in DDP's buckets, and it is told that each step uses the same parameters in the same order
    unless one `accumulates` over several passes.
    """
    if ranks == 1:
        return model
    kind = DistributedDataParallel if "torch._dynamo" in sys.modules else _EagerDDP
    on_gpu = device.type == "cuda"
    return kind(
        model,
        device_ids=[device] if on_gpu else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=on_gpu,
        static_graph=on_gpu and not accumulates,
    )


class _EagerDDP(DistributedDataParallel):
    """DDP for who has not loaded torch's compiler, which DDP does for one setting and for a mark on one function: 1.3 s
    of every worker."""

    def __init__(self, *given: Any, **options: Any) -> None:
        asked = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # the default
        torch._dynamo = SimpleNamespace(utils=asked)
        try:
            super().__init__(*given, **options)
        finally:
            del torch._dynamo

    _inside_ddp_forward = contextlib.contextmanager(
        inspect.unwrap(DistributedDataParallel._inside_ddp_forward)
    )


def gradients_meet(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """DDP averages gradients with the last micro-batch only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()
