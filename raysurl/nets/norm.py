"""Batch norm over the global batch, on gloo as well as NCCL (torch's own SyncBatchNorm needs a GPU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysurl import distributed
from raysurl.errors import InputError


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose mean and variance, and their gradients, are those of all ranks' rows together.

    Input (b, C) or (b, C, H, W). On one rank it is torch's batch norm. State names are torch's.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs (b, C, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _global_moments(input)
        if self.track_running_stats:
            self._track(mean, var, count)
        out: Tensor = _Normalise.apply(input, self.weight, self.bias, mean, var, count, self.eps)
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        unbiased = var * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


@torch.no_grad()
def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance (C,) fp32 over all ranks' rows and pixels, and how many there are.

    One collective: each rank's moments are gathered and combined (Chan et al.), which loses no digits. Ranks
    hold equally many rows, as the plan deals them. Two plain passes are several times faster on a CPU than
    torch.var_mean, whose channels are not the inner dimension.
    """
    dims, shape = _around_channels(x)
    mean = x.float().mean(dim=dims)
    var = (x - mean.view(shape)).square().mean(dim=dims)
    moments = distributed.gather(torch.stack([mean, var])[None])  # (W, 2, C)
    means, variances = moments[:, 0], moments[:, 1]
    mean = means.mean(dim=0)
    var = (variances + (means - mean).square()).mean(dim=0)
    return mean, var, float(x.numel() // x.shape[1] * distributed.world_size())


def _around_channels(x: Tensor) -> tuple[list[int], list[int]]:
    """All dimensions but the channels', and the shape that lets (C,) act on x."""
    return [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)


class _Normalise(torch.autograd.Function):
    """y = weight·(x − mean)/√(var + eps) + bias, where mean and var are functions of all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: float, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # first with mean and var as constants: one fused pass gives w/σ·g, Σ g·(x − mean)/σ and Σ g of this rank
        # (the CUDA kernel takes no None for the saved moments, which evaluation mode does not read)
        unused = mean.new_empty(0)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0].contiguous(), x, weight, mean, var, unused, unused, False, ctx.eps, [True, True, True]
        )
        # then what flows through mean and var, which takes the sums of all ranks; DDP averages those of weight, bias
        mean_grad, mean_product = distributed.total(torch.stack([grad_bias, grad_weight])) / ctx.count
        inv_std = torch.rsqrt(var + ctx.eps)
        slope = -weight * inv_std * inv_std * mean_product
        shift = -weight * inv_std * mean_grad - slope * mean
        _, shape = _around_channels(x)
        grad_x += torch.addcmul(shift.view(shape), x.float(), slope.view(shape)).to(grad_x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None


class SyncBatchNormAct(SyncBatchNorm):
    """timm's batch norm that has an activation within, synchronised."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__(of.num_features, of.eps, of.momentum, of.affine, of.track_running_stats)  # type: ignore[arg-type]
        self.drop, self.act = of.drop, of.act

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(input)))  # type: ignore[operator]
        return out


def convert(module: nn.Module, kind: str) -> nn.Module:
    """Replace torch's batch norms by synchronised ones where kind is `sync`; names and values stay.

    Raises InputError for a batch norm of another kind, which only its own library could synchronise.
    """
    if kind != "sync":
        return module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        new = _synchronised(module)
        new.load_state_dict(module.state_dict())
        return new
    for name, child in module.named_children():
        setattr(module, name, convert(child, kind))
    return module


def _synchronised(module: nn.BatchNorm1d | nn.BatchNorm2d) -> SyncBatchNorm:
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
    if hasattr(module, "act") and hasattr(module, "drop"):
        return SyncBatchNormAct(module)
    raise InputError(
        f"norm=sync does not know how to synchronise {type(module).__name__} of the encoder; use norm=local"
    )
