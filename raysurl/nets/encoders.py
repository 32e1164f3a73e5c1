"""Backbones: torchvision's and timm's, with their parameter names, a small network for small images, an MLP, and pairs.

A pair is what Super-AND uses: one network sees the image, another of the same kind its Sobel edges.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from raysurl import features, plugins
from raysurl.errors import InputError
from raysurl.nets import plugged, timm_models
from raysurl.nets.dropping import Dropout, seeded
from raysurl.nets.norm import convert

HEADS = {
    "resnet": "fc",
    "efficientnet": "classifier",
    "mobilenet": "classifier",
    "regnet": "fc",
    "shufflenet": "fc",
    "alexnet": "classifier",
}
SMALLEST = {"alexnet": (63, 15)}  # pixels that survive its unpadded poolings: as it is, with a small stem
EDGES = 2  # channels of a Sobel image


class ConvNet(nn.Module):
    """3×3 convolutions, all but the first of stride 2, batch norm, pooled: (b, channels, H, W) -> (b, widths[-1])."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), *, channels: int = 3) -> None:
        super().__init__()
        self.dim = widths[-1]
        layers: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(zip((channels, *widths), widths, strict=False)):
            layers += [
                nn.Conv2d(wide_in, wide_out, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(wide_out),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.mean(dim=(2, 3))


class MLP(nn.Module):
    """Linear layers with LeakyReLU between them: (b, inputs), or images of so many values, -> (b, widths[-1]).

    GenURL: [500, 500, 2] for dimension reduction, four of 512 and then 128 for graphs. `dropout` is of the inputs
    and of each hidden layer. Raises InputError for rows of another width.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs, self.dim = inputs, widths[-1]
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip((inputs, *widths), widths, strict=False):
            layers += [nn.LeakyReLU()] if layers else []
            layers += [Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(wide_in, wide_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_hidden(x)[1]

    def with_hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (b, widths[-2]) that enter the last layer, (b, inputs) where there is one alone, and its outputs."""
        x = x.flatten(1)
        if x.shape[1] != self.inputs:
            raise InputError(
                f"the encoder mlp was made for {self.inputs} values per sample, not {x.shape[1]}"
            )
        for layer in self.layers[:-1]:
            x = layer(x)
        return x, self.layers[-1](x)


class TwoTrunk(nn.Module):
    """Features of an image and of its Sobel edges side by side: (b, 3, H, W) -> (b, rgb.dim + sobel.dim)."""

    def __init__(self, rgb: nn.Module, sobel: nn.Module) -> None:
        super().__init__()
        self.rgb, self.sobel = rgb, sobel
        self.dim = int(rgb.dim) + int(sobel.dim)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.rgb(x), self.sobel(features.sobel(x))], dim=1)


def build_encoder(
    name: str,
    *,
    small_stem: bool,
    maxpool: bool,
    norm: str,
    with_sobel: bool = False,
    widths: tuple[int, ...] | None = None,
    zero_init_residual: bool = False,
    drop_path: float | None = None,
    options: Mapping[str, Any] | None = None,
    sizes: Sequence[int] = (224,),
) -> nn.Module:
    """Encoder (b, 3, H, W) -> (b, encoder.dim) of pooled features, under torchvision's or timm's parameter names.

    `small_stem`: the first convolution becomes 3×3 with stride 1 (and the max-pool goes unless `maxpool`).
    `norm`: sync | shuffle | local, see raysurl.norm. `with_sobel`: a `TwoTrunk`, whose names begin with `rgb.` and
    `sobel.`. `widths`: of a convnet's layers. `zero_init_residual`: the last batch norm of each residual block begins
    at 0; networks other than ResNets have none. `drop_path`: rate of stochastic depth at the last block, None: the
    network's own. `options`: what the constructor of a network of timm, or from outside the package, is given
    besides. `sizes`: pixels of the views that such a network will see, the main one first. Raises InputError for an
    unknown name, and for what such a network cannot be or see.
    """

    of_timm = name.startswith(timm_models.PREFIX)
    of_others = not built_in(name) and plugins.offered("encoder", name)
    if of_others:
        own = {"small_stem": small_stem, "maxpool": maxpool, "zero_init_residual": zero_init_residual}
        plugged.refuse(name, own | {"drop_path": drop_path})

    def network(channels: int) -> nn.Module:
        net: Any
        if of_others:
            return plugged.build(name, options or {}, channels=channels, sizes=sizes, norm=norm)
        if name == "convnet":
            return convert(ConvNet(widths, channels=channels) if widths else ConvNet(channels=channels), norm)
        if of_timm:
            net = timm_models.build(
                name,
                channels=channels,
                sizes=sizes,
                small_stem=small_stem,
                zero_init=zero_init_residual,
                drop_path=drop_path,
                options=options or {},
            )
        else:
            net = _network(name, _torchvision_options(name, zero_init_residual, drop_path, options))
        if small_stem or (channels != 3 and not of_timm):
            _replace_stem(net, small_stem=small_stem, channels=channels)
        if small_stem and hasattr(net, "maxpool") and not maxpool:
            net.maxpool = nn.Identity()
        net = convert(seeded(net), norm)
        if of_timm:
            net.dim = timm_models.width_for(net, name, channels, sizes)
        return net

    return TwoTrunk(network(3), network(EDGES)) if with_sobel else network(3)


def check_size(name: str, size: int, *, small_stem: bool) -> None:
    """Raises InputError where views of `size` pixels vanish inside the network."""
    large, small = SMALLEST.get(name, (1, 1))
    if size < (small if small_stem else large):
        hint = "" if small_stem or size < small else ", or encoder.small_stem=true"
        raise InputError(
            f"encoder.name={name} needs views of at least {small if small_stem else large} pixels, not {size};"
            f" set views.size higher{hint}"
        )


def _torchvision_options(
    name: str, zero_init_residual: bool, drop_path: float | None, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    if given and built_in(name):
        raise InputError(
            f"encoder.options are of timm's networks and of those from outside the package, and encoder.name={name} is"
            " neither; leave them out"
        )
    options: dict[str, Any] = {}
    if zero_init_residual and name.startswith("resnet"):
        options["zero_init_residual"] = True
    if drop_path is not None:
        if not name.startswith("efficientnet"):
            raise InputError(
                f"encoder.name={name} has no stochastic depth; leave encoder.drop_path out, or take a network of timm"
            )
        options["stochastic_depth_prob"] = drop_path
    return options


def built_in(name: str) -> bool:
    """Whether a name is of the package's own networks, of timm's or of torchvision's."""
    own = name in ("convnet", "mlp") or name.startswith(timm_models.PREFIX)
    return own or (_head_of(name) != "" and name in _torchvision_names())


@cache
def _torchvision_names() -> list[str]:
    import torchvision  # a second, which the small networks need not wait for

    return sorted(n for n in torchvision.models.list_models(torchvision.models) if _head_of(n))


def _network(name: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    names = [*_torchvision_names(), *plugins.names("encoder")]
    if name not in names:
        near = difflib.get_close_matches(name, [*names, "convnet", "mlp"], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"encoder.name={name} is not known{hint} (convnet, mlp, timm:NAME, FILE.py:NAME, or one of"
            f" {', '.join(names)})"
        )
    net = torchvision.models.get_model(name, weights=None, **options)
    head = _head_of(name)
    net.dim = _in_features(getattr(net, head))
    setattr(net, head, nn.Identity())
    net.classifier_names = (head,)
    return net


def _head_of(name: str) -> str:
    return next((head for family, head in HEADS.items() if name.startswith(family)), "")


def _in_features(head: nn.Module) -> int:
    """Width of the pooled features: the input of the classifier's first linear layer."""
    return next(m.in_features for m in head.modules() if isinstance(m, nn.Linear))


def _replace_stem(net: nn.Module, *, small_stem: bool, channels: int) -> None:
    """A new first convolution for images of so many channels, 3×3 with stride 1 where `small_stem`."""
    owner, key = next(
        (module, key)
        for module in net.modules()
        for key, child in module.named_children()
        if isinstance(child, nn.Conv2d)
    )
    first = getattr(owner, key)
    assert isinstance(first, nn.Conv2d)
    kernel, stride, padding = first.kernel_size, first.stride, first.padding
    if small_stem:
        kernel, stride, padding = (3, 3), (1, 1), (1, 1)
    has_bias = first.bias is not None
    stem = nn.Conv2d(channels, first.out_channels, kernel, stride=stride, padding=padding, bias=has_bias)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(owner, nn.Sequential):
        owner[int(key)] = stem
    else:
        setattr(owner, key, stem)
