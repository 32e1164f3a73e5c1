"""The work of a network, counted as it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysurl.nets.eager import Mode


def flops(net: nn.Module, x: Tensor) -> int:
    """Floating-point operations of convolutions and matrix products in one pass, a multiply-add as two."""
    was = {module: module.training for module in net.modules()}
    net.eval()
    counter = _Counter()  # type: ignore[no-untyped-call]
    # attention as plain products: those that are fused are counted on some devices alone
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        net(x)
    for module, mode in was.items():
        module.training = mode
    return counter.total


class _Counter(Mode):
    """Adds up what torch's table of formulas says of each operation.

    Torch's FlopCounterMode does the same by module, and loads torch's compiler.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


def bare(net: nn.Module) -> nn.Module:
    """The network, changed in place, without its batch norms: no operation is counted of them, and on the device `meta`
    they take longer than all else."""
    for name, child in net.named_children():
        is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)
        setattr(net, name, nn.Identity() if is_norm else bare(child))
    return net
