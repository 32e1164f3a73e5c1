"""The encoder of this folder in plain PyTorch: `model = load("."); z = model(torch.stack([prepare(image)]))`.

`config.json` says what it is and how images are prepared, `model.safetensors` holds its weights. Needed are torch and
safetensors, torchvision for its networks and for `prepare`, and timm for its.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent


def load(folder: str | Path = FOLDER) -> nn.Module:
    """The encoder in evaluation mode: what `config.json` calls its input, (b, …) float32, -> (b, num_features)."""
    network = build(read_config(folder))
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()


def prepare(image: Any, folder: str | Path = FOLDER) -> Tensor:
    """A PIL image, or (3, H, W) in [0, 1], as the encoder sees it: resized, cropped, normalised, (3, S, S)."""
    from torchvision.transforms import functional

    said = read_config(folder)["preprocessing"]
    pixels = image if isinstance(image, Tensor) else functional.to_tensor(image.convert("RGB"))
    short, size = min(pixels.shape[-2:]), said["resize"]
    if short != size:
        mode = functional.InterpolationMode(said["interpolation"])
        pixels = functional.resize(pixels, [size], mode, antialias=True)
    pixels = functional.center_crop(pixels, [said["crop"]])
    return functional.normalize(pixels, said["mean"], said["std"])


def read_config(folder: str | Path = FOLDER) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config


def build(config: dict[str, Any]) -> nn.Module:
    """The network of `config["encoder"]` with untrained weights."""
    encoder = config["encoder"]
    if encoder["name"] == "mlp":
        return Layers(encoder["inputs"], encoder["widths"], bool(encoder["dropout"]))
    if encoder["sobel"]:
        return ImageAndEdges(trunk(encoder, 3), trunk(encoder, 2))
    return trunk(encoder, 3)


def trunk(encoder: dict[str, Any], channels: int) -> nn.Module:
    """A network that sees images of so many channels and gives pooled features."""
    if encoder["name"] == "convnet":
        return Convolutions(encoder["channels"], channels)
    library, _, name = encoder["name"].rpartition(":")
    network = of_timm(name, encoder["options"], channels) if library else of_torchvision(name)
    if encoder["small_stem"] or (channels != 3 and not library):
        new_stem(network, channels, small=encoder["small_stem"])
    if encoder["small_stem"] and hasattr(network, "maxpool") and not encoder["maxpool"]:
        network.maxpool = nn.Identity()
    return network


def of_torchvision(name: str) -> nn.Module:
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None)
    for head in ("fc", "classifier"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    return network


def of_timm(name: str, options: dict[str, Any], channels: int) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=0, in_chans=channels, **options)
    return network


def new_stem(network: nn.Module, channels: int, *, small: bool) -> None:
    """Another first convolution, of so many channels, and 3×3 with stride 1 where it is small."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    shape: dict[str, Any] = {"kernel_size": 3, "stride": 1, "padding": 1}
    if not small:
        shape = {key: getattr(first, key) for key in shape}
    owner, _, key = name.rpartition(".")
    stem = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **shape)
    setattr(network.get_submodule(owner), key, stem)


class Convolutions(nn.Module):
    """3×3 convolutions with batch norm, all but the first of stride 2, pooled: (b, channels, H, W) -> (b, D)."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(zip([channels, *widths], widths, strict=False)):
            convolution = nn.Conv2d(wide_in, wide_out, 3, 1 if i == 0 else 2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.mean(dim=(2, 3))


class Layers(nn.Module):
    """Linear layers with LeakyReLU between them: (b, inputs), or images of so many values, -> (b, widths[-1]).

    Where `dropout` was trained with, its layers stand in the numbering of the weights and do nothing.
    """

    def __init__(self, inputs: int, widths: list[int], dropout: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip([inputs, *widths], widths, strict=False):
            layers += [nn.LeakyReLU()] if layers else []
            layers += [nn.Identity()] if dropout else []
            layers.append(nn.Linear(wide_in, wide_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(1))
        return out


class ImageAndEdges(nn.Module):
    """Features of an image and of its Sobel edges side by side."""

    def __init__(self, rgb: nn.Module, sobel: nn.Module) -> None:
        super().__init__()
        self.rgb, self.sobel = rgb, sobel

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.rgb(x), self.sobel(edges(x))], dim=1)


def edges(images: Tensor) -> Tensor:
    """Sobel gradients of the mean over channels, across and down, zero padding: (b, 2, H, W)."""
    across = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    return F.conv2d(images.mean(dim=1, keepdim=True), torch.stack([across, across.T])[:, None], padding=1)
