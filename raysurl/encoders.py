"""Backbones: torchvision's, with its parameter names, and one small network for small images and two cores."""

from __future__ import annotations

import difflib

import torchvision
from torch import Tensor, nn

from raysurl.errors import InputError
from raysurl.norm import convert

HEADS = {
    "resnet": "fc",
    "efficientnet": "classifier",
    "mobilenet": "classifier",
    "regnet": "fc",
    "shufflenet": "fc",
}


class ConvNet(nn.Module):
    """Four 3×3 convolutions (the later three stride 2) with batch norm, pooled: (b, 3, H, W) -> (b, 256)."""

    dim = 256

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [
                nn.Conv2d(wide_in, wide_out, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(wide_out),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.mean(dim=(2, 3))


def build_encoder(name: str, *, small_stem: bool, maxpool: bool, norm: str) -> nn.Module:
    """Encoder (b, 3, H, W) -> (b, encoder.dim) of pooled features, under torchvision's parameter names.

    `small_stem`: the first convolution becomes 3×3 with stride 1 (and the max-pool goes unless `maxpool`).
    `norm`: sync | shuffle | local, see raysurl.norm. Raises InputError for an unknown name.
    """
    if name == "convnet":
        return convert(ConvNet(), norm)
    names = sorted(n for n in torchvision.models.list_models(torchvision.models) if _head_of(n))
    if name not in names:
        near = difflib.get_close_matches(name, [*names, "convnet"], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"encoder.name={name} is not known{hint} (convnet, or one of {', '.join(names)})")
    net = torchvision.models.get_model(name, weights=None)
    head = _head_of(name)
    dim = _in_features(getattr(net, head))
    setattr(net, head, nn.Identity())
    if small_stem:
        _use_small_stem(net, maxpool)
    net.dim = dim
    return convert(net, norm)


def _head_of(name: str) -> str:
    return next((head for family, head in HEADS.items() if name.startswith(family)), "")


def _in_features(head: nn.Module) -> int:
    """Width of the pooled features: the input of the classifier's first linear layer."""
    return next(m.in_features for m in head.modules() if isinstance(m, nn.Linear))


def _use_small_stem(net: nn.Module, maxpool: bool) -> None:
    owner, key = next(
        (module, key)
        for module in net.modules()
        for key, child in module.named_children()
        if isinstance(child, nn.Conv2d)
    )
    first = getattr(owner, key)
    assert isinstance(first, nn.Conv2d)
    stem = nn.Conv2d(3, first.out_channels, 3, stride=1, padding=1, bias=first.bias is not None)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(owner, nn.Sequential):
        owner[int(key)] = stem
    else:
        setattr(owner, key, stem)
    if hasattr(net, "maxpool") and not maxpool:
        net.maxpool = nn.Identity()
