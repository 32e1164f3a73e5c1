"""Optimizers and the learning rate as a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raysurl import recipe as recipes
from raysurl.method import Progress
from raysurl.nets import timm_models
from raysurl.nets.eager import SGD, Adam, AdamW, eager


@eager
class LARS(Optimizer):
    """SGD with momentum and a layer-wise trust ratio (You et al. 2017), as MoCo v3 and BYOL use it.

    d = grad + wd·p, scaled by trust·‖p‖/‖d‖ where both norms are positive; parameters with `lars_exclude`
    (biases and norms) take plain momentum SGD without decay.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, trust: float) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates: list[Tensor] = [p.grad for p in params]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, params, alpha=group["weight_decay"]))
            if not group.get("lars_exclude"):
                ratios = _trust_ratios(params, updates, group["trust"])
                updates = list(torch._foreach_mul(updates, ratios))
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            if isinstance(group["lr"], Tensor):
                torch._foreach_add_(params, torch._foreach_mul(buffers, -group["lr"]))
            else:
                torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _trust_ratios(params: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    """A scalar for each parameter, worked out for all of them at once."""
    p_norm, d_norm = (torch.stack(torch._foreach_norm(rows)) for rows in (params, updates))
    ratio = trust * p_norm / d_norm.clamp_min(1e-12)
    return list(torch.where((p_norm > 0) & (d_norm > 0), ratio, 1.0).unbind())


def build_optimizer(model: nn.Module, settings: recipes.Optimizer) -> Optimizer:
    """Parameter groups: decayed, or not (LARS leaves these unscaled too), with `lr_scale`, a factor of the rate.

    Torch's own are fused: one pass over all parameters. On a GPU the learning rate may then be a tensor.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    excluded = set(no_weight_decay(named, settings.decay_filter, timm_models.undecayed(model)))
    bias_scale = 1.0 if settings.bias_lr is None else settings.bias_lr / settings.lr
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in named:
        scale = bias_scale if parameter.ndim <= 1 else 1.0
        groups.setdefault((name in excluded, scale), []).append(parameter)
    wd = settings.weight_decay
    on_gpu = all(p.is_cuda for _, p in named)
    return _OPTIMIZERS[settings.name](
        [
            {"params": p, "weight_decay": 0.0 if out else wd, "lars_exclude": out, "lr_scale": scale}
            for (out, scale), p in sorted(groups.items(), key=lambda group: group[0])
        ],
        settings,
        on_gpu,
    )


def _sgd(groups: list[dict[str, Any]], settings: recipes.Optimizer) -> Optimizer:
    """Momentum begins at zero, the same numbers as torch's own beginning: its fused step takes no parameter that begins
    later than the others of its group, as frozen ones do."""
    optimizer = SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
    for parameter in (p for group in groups for p in group["params"] if settings.momentum):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda groups, s, on_gpu: _sgd(groups, s),
    "adam": lambda groups, s, on_gpu: Adam(groups, lr=0.0, fused=True, capturable=on_gpu),
    "adamw": lambda groups, s, on_gpu: AdamW(groups, lr=0.0, fused=True, capturable=on_gpu),
    "lars": lambda groups, s, on_gpu: LARS(
        groups, lr=0.0, momentum=s.momentum, weight_decay=0.0, trust=s.trust
    ),
}


def set_lr(optimizer: Optimizer, lr: float | Tensor) -> None:
    """The run's rate, times each group's own factor."""
    for group in optimizer.param_groups:
        scale = group.get("lr_scale", 1.0)  # checkpoints of older runs have none
        group["lr"] = lr if scale == 1 else lr * scale


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """What a checkpoint holds: the state of each parameter. The settings are the recipe's and the device's."""
    state = optimizer.state_dict()
    return {"state": state["state"], "param_groups": [{"params": g["params"]} for g in state["param_groups"]]}


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back `state_of`, written on whatever device. Raises ValueError where the parameters are others."""
    groups = [
        {**{name: value for name, value in ours.items() if name != "params"}, "params": theirs["params"]}
        for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # fused steps want the memory format of the parameter, which is the device's
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def no_weight_decay(
    named: Iterable[tuple[str, Tensor]], rule: str, own: Collection[str] = ()
) -> Iterator[str]:
    """Names of parameters without weight decay.

    `ndim`: biases and all norm parameters, and those that the network itself names, `own`: position embeddings, class
    tokens. `all`: everything is decayed, as torch's optimizers do unless told; under
    LARS everything is scaled then, as LARC does. `official_name`: ReSSL's name test, which misses the batch-norm scale
    inside a residual shortcut (`downsample.1.weight`), as in the authors' run.
    """
    if rule == "all":
        return
    for name, parameter in named:
        by_name = "bn" in name or "bias" in name
        if by_name if rule == "official_name" else parameter.ndim <= 1 or name in own:
            yield name


def base_lr(settings: recipes.Optimizer, batch_size: int) -> float:
    """The recipe's lr scaled linearly to the global batch; lr_batch=0 takes it as it is."""
    return settings.lr * (batch_size / settings.lr_batch if settings.lr_batch else 1)


def learning_rate(base: float, schedule: recipes.Schedule, progress: Progress) -> float:
    """Linear warm-up, then cosine, steps, or constant; of the run or of a round, at each step or each epoch.

    The warm-up begins at `start` and the cosine ends at `floor`, shares of the base.
    """
    step, total = progress.step, progress.total_steps
    if schedule.period == "round":
        step, total = progress.step_in_round, progress.steps_per_round
    if schedule.by == "epoch":
        step -= step % progress.steps_per_epoch
    warmup = schedule.warmup_epochs * progress.steps_per_epoch
    if step < warmup:
        return base * (schedule.start + (1 - schedule.start) * step / warmup)
    if schedule.name == "cosine":
        done = (step - warmup) / max(total - warmup, 1)
        return base * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule.name == "step":
        passed = sum(step >= m * total for m in schedule.milestones)
        return float(base * schedule.gamma**passed)
    return base
