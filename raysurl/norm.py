"""Batch norm over the global batch, on gloo as well as NCCL (torch's own SyncBatchNorm needs a GPU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raysurl import distributed


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
        out: Tensor = _Normalise.apply(
            input, self.weight, self.bias, mean, torch.rsqrt(var + self.eps), count
        )
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
    hold equally many rows, as the plan deals them.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.float(), dim=dims, correction=0)
    moments = distributed.gather(torch.stack([mean, var])[None])  # (W, 2, C)
    means, variances = moments[:, 0], moments[:, 1]
    mean = means.mean(dim=0)
    var = (variances + (means - mean).square()).mean(dim=0)
    return mean, var, float(x.numel() // x.shape[1] * distributed.world_size())


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, count: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.count = count
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = weight * inv_std
        shift = bias - mean * scale
        return torch.addcmul(shift.view(shape), x.float(), scale.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        grad = grads[0].float()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        normalised = (x.float() - mean.view(shape)) * inv_std.view(shape)
        sums = torch.stack([grad.sum(dim=dims), (grad * normalised).sum(dim=dims)])
        grad_bias, grad_weight = sums[0].clone(), sums[1].clone()  # this rank's; DDP averages them
        dist.all_reduce(sums)
        mean_grad, mean_product = (sums / ctx.count).view(2, *shape).unbind(0)
        grad_x = (grad - mean_grad - normalised * mean_product) * (weight * inv_std).view(shape)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


def convert(module: nn.Module, kind: str) -> nn.Module:
    """Replace torch's batch norms by synchronised ones where kind is `sync`; names and values stay."""
    if kind != "sync":
        return module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        new = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        new.load_state_dict(module.state_dict())
        return new
    for name, child in module.named_children():
        setattr(module, name, convert(child, kind))
    return module
