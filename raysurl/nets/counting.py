"""The work of a network, counted as it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def flops(net: nn.Module, x: Tensor) -> int:
    """Floating-point operations of convolutions and matrix products in one pass, a multiply-add as two."""
    from torch.utils.flop_counter import FlopCounterMode

    was = {module: module.training for module in net.modules()}
    net.eval()
    counter = FlopCounterMode(display=False)
    # attention as plain products: those that are fused are counted on some devices alone
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        net(x)
    for module, mode in was.items():
        module.training = mode
    return int(counter.get_total_flops())


def bare(net: nn.Module) -> nn.Module:
    """The network, changed in place, without its batch norms: no operation is counted of them, and on the device `meta`
    they take longer than all else."""
    for name, child in net.named_children():
        is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)
        setattr(net, name, nn.Identity() if is_norm else bare(child))
    return net
