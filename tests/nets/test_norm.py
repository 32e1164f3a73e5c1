"""Synchronised batch norm and gathers: two ranks equal one device on the same global batch."""

import pytest
import torch
from torch import nn

from raysurl import distributed
from raysurl.nets.norm import SyncBatchNorm, convert
from raysurl.testing.ranks import on_ranks


def _inputs(shape, weight_seed=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, *shape, generator=generator) * 3 + 2
    target = torch.randn(8, 6, *shape, generator=generator)
    return x, target


def _forward_backward(norm, x, target):
    x = x.clone().requires_grad_()
    out = norm(x)
    ((out - target) ** 2).mean().backward()
    return out.detach(), x.grad


def _norm():
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 6))
        norm.bias.copy_(torch.linspace(-1, 1, 6))
    return norm


def _two_ranks(rank, shape):
    x, target = _inputs(shape)
    norm = convert(_norm(), "sync")
    assert isinstance(norm, SyncBatchNorm)
    part = slice(rank * 4, rank * 4 + 4)
    out, grad = _forward_backward(norm, x[part], target[part])
    grads = [distributed.mean(p.grad) for p in norm.parameters()]
    gathered = distributed.gather_with_gradient(y := torch.full((2, 1), float(rank), requires_grad=True))
    (gathered * torch.arange(4.0)[:, None]).sum().backward()
    drawn = torch.randperm(8, generator=torch.Generator().manual_seed(7))
    order = distributed.unshuffle(distributed.shuffle(torch.arange(4.0) + 4 * rank, drawn), drawn)
    return {
        "out": out,
        "grad": grad / 2,  # each rank's loss is the mean of its half
        "params": grads,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "gathered": gathered.detach(),
        "gather_grad": y.grad,
        "shuffled": distributed.shuffle(torch.arange(4.0) + 4 * rank, drawn),
        "order": order,
    }


@pytest.mark.slow
def test_two_ranks_equal_one():
    x, target = _inputs((3, 5))
    norm = _norm()
    out, grad = _forward_backward(norm, x, target)
    first, second = on_ranks(_two_ranks, 2, (3, 5))
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([first["grad"], second["grad"]]), grad, rtol=1e-4, atol=1e-7)
    for ours, theirs in zip(first["params"], norm.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["mean"], norm.running_mean)
    torch.testing.assert_close(second["var"], norm.running_var)
    assert first["gathered"].flatten().tolist() == [0, 0, 1, 1]
    # both ranks computed the same sum, so the summed gradient is twice one device's: DDP's mean undoes it
    assert first["gather_grad"].flatten().tolist() == [0, 2]
    assert second["gather_grad"].flatten().tolist() == [4, 6]
    for rank, result in enumerate((first, second)):
        assert result["order"].tolist() == [4 * rank + i for i in range(4)]
    mixed = first["shuffled"].tolist() + second["shuffled"].tolist()
    assert sorted(mixed) == list(range(8))
    assert mixed != list(range(8))


def test_one_rank_is_torchs_batch_norm():
    x, target = _inputs(())
    ours, theirs = convert(nn.BatchNorm1d(6), "sync"), nn.BatchNorm1d(6)
    for mine, reference in zip(
        _forward_backward(ours, x, target), _forward_backward(theirs, x, target), strict=True
    ):
        assert torch.equal(mine, reference)


def test_convert_keeps_names_and_values():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    names = list(net.state_dict())
    assert list(convert(net, "sync").state_dict()) == names
    assert isinstance(net[2][0], SyncBatchNorm)
    plain = nn.Sequential(nn.BatchNorm2d(4))
    assert type(convert(plain, "local")[0]) is nn.BatchNorm2d
