"""An encoder as timm has it: which of its models it is, and its weights under timm's names.

Where the names differ, tensors are matched by their order, or by the table of RegNets; whoever exports compares the
outputs of what timm then reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysurl import streams
from raysurl.errors import InputError
from raysurl.export.asked import EXTRA
from raysurl.export.checking import quietly
from raysurl.nets.drawing import drawn_from
from raysurl.nets.timm_models import PREFIX
from raysurl.recipe import Recipe

REGNETS = {  # torchvision's -> timm's with the same widths
    "x_400mf": "x_004_tv", "x_800mf": "x_008", "x_1_6gf": "x_016", "x_3_2gf": "x_032", "x_8gf": "x_080",
    "x_16gf": "x_160", "x_32gf": "x_320", "y_400mf": "y_004", "y_800mf": "y_008_tv", "y_1_6gf": "y_016",
    "y_3_2gf": "y_032", "y_8gf": "y_080_tv", "y_16gf": "y_160", "y_32gf": "y_320", "y_128gf": "y_1280",
}  # fmt: skip
IN_REGNETS = (  # parts of a torchvision name -> timm's
    (r"^stem\.0", "stem.conv"),
    (r"^stem\.1", "stem.bn"),
    (r"^trunk_output\.block(\d)\.block\d+-(\d+)", r"s\1.b\2"),
    (r"\.f\.se\.", ".se."),
    (r"\.f\.a\.0", ".conv1.conv"),
    (r"\.f\.a\.1", ".conv1.bn"),
    (r"\.f\.b\.0", ".conv2.conv"),
    (r"\.f\.b\.1", ".conv2.bn"),
    (r"\.f\.c\.0", ".conv3.conv"),
    (r"\.f\.c\.1", ".conv3.bn"),
    (r"\.proj\.0", ".downsample.conv"),
    (r"\.proj\.1", ".downsample.bn"),
)
OTHERS = "export to onnx, torchscript, torch.export or huggingface"


@dataclass(frozen=True)
class TimmForm:
    """`name`, `args`: of `timm.create_model(name, num_classes=0, **args)`; `tensors`: its state."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def call(self, first: str, more: str) -> str:
        """How it is made, as a line of Python."""
        args = "".join(f", {key}={value!r}" for key, value in self.args.items())
        return f"timm.create_model({first}, {more}, num_classes=0{args})"


def known_form(recipe: Recipe) -> TimmForm | None:
    """The model of timm that the recipe's encoder is; None where timm has none that computes the same."""
    e = recipe.encoder
    if e.sobel or e.small_stem:
        return None
    if e.name.startswith(PREFIX):
        return TimmForm(e.name.removeprefix(PREFIX))
    if re.fullmatch(r"resnet\d+", e.name):
        return TimmForm(e.name)
    if found := re.fullmatch(r"efficientnet_b(\d)", e.name):
        return TimmForm(e.name, {"bn_eps": 1e-3} if int(found[1]) > 4 else {})
    if found := re.fullmatch(r"efficientnet_v2_([sml])", e.name):
        return TimmForm(f"efficientnetv2_{found[1]}", {"bn_eps": 1e-3})
    if e.name == "mobilenet_v2":
        return TimmForm("mobilenetv2_100")
    if (width := e.name.removeprefix("regnet_")) in REGNETS:
        return TimmForm(f"regnet{REGNETS[width]}")
    return None


def timm_form(recipe: Recipe, encoder: nn.Module) -> TimmForm:
    """That model with the encoder's weights. Raises InputError where there is none, or the weights do not fit it."""
    form = known_form(recipe)
    if form is None:
        raise InputError(f"to=timm: timm has no model that computes what {spoken(recipe)} does; {OTHERS}")
    import timm

    if form.name.partition(".")[0] not in timm.list_models():
        raise InputError(
            f"to=timm: this version of timm has no model {form.name}; {OTHERS}, or update it: {EXTRA}"
        )
    state = encoder.state_dict()
    if any(name.startswith("trunk_output.") for name in state):
        state = {_regnet_name(name): value for name, value in state.items()}
    args = getattr(encoder, "made_with", form.args)
    tensors = _matched(_shapes(form.name, args), state)
    if tensors is None:
        raise InputError(
            f"to=timm: the weights of {spoken(recipe)} are not those of timm's {form.name}; {OTHERS}"
        )
    return TimmForm(form.name, args, tensors)


def spoken(recipe: Recipe) -> str:
    """`encoder.name=resnet18 with a small stem`."""
    e = recipe.encoder
    parts = [*(["a small stem"] if e.small_stem else []), *(["Sobel edges"] if e.sobel else [])]
    return f"encoder.name={e.name}" + (f" with {' and '.join(parts)}" if parts else "")


def _shapes(name: str, args: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Of timm's parameters, which take no memory where that can be; nothing where it knows no such argument."""
    import timm

    def made(device: str) -> nn.Module:
        with torch.device(device), drawn_from(streams.torch_stream(0, "export")), quietly():
            model: nn.Module = timm.create_model(name, num_classes=0, **args)
            return model

    try:
        try:
            model = made("meta")
        except (NotImplementedError, RuntimeError):  # it computes with values when it is built
            model = made("cpu")
    except TypeError:
        return {}
    return {key: value.shape for key, value in model.state_dict().items()}


def _matched(wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors under the wanted names: by name, by name behind one prefix, or by order where all shapes agree."""
    if len(wanted) != len(state):
        return None
    prefix = next((n.removesuffix(next(iter(wanted))) for n in state if n.endswith(next(iter(wanted)))), "")
    named = {name.removeprefix(prefix): value for name, value in state.items()}
    if set(named) != set(wanted):
        named = dict(zip(wanted, state.values(), strict=True))
    fits = all(named[name].shape == shape for name, shape in wanted.items())
    return {name: named[name].detach().cpu().contiguous() for name in wanted} if fits else None


def _regnet_name(name: str) -> str:
    """The number of a block begins at 1 in timm."""
    for pattern, new in IN_REGNETS:
        name = re.sub(pattern, new, name)
    return re.sub(r"^(s\d\.b)(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", name)
