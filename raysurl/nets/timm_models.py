"""Backbones of timm (`encoder.name=timm:NAME`), with timm's parameter names, without a classifier.

What they give is pooled as timm pools it. Nothing is downloaded: they begin untrained, or with the weights of a file.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from raysurl.errors import InputError, first_line
from raysurl.nets.probing import outputs

PREFIX = "timm:"
# of the create function of timm, which this module answers itself
OURS = {
    "num_classes": "leave it out: there is no classifier",
    "in_chans": "leave it out: the channels are those of the views",
    "img_size": "use views.size",
    "dynamic_img_size": "leave it out: views of all sizes are taken where the network can",
    "zero_init_last": "use encoder.zero_init_residual",
    "drop_path_rate": "use encoder.drop_path",
    **dict.fromkeys(
        ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), "use init_from"
    ),
    **dict.fromkeys(("cache_dir", "features_only", "scriptable", "exportable", "no_jit"), "leave it out"),
}
_QUOTED = re.compile(r"'(\w+)'")


def library(setting: str) -> Any:
    """timm, a second's import. Raises InputError where it is absent; `setting`: what asked for it."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(f"{setting} needs the package timm; pip install 'raysurl[timm]'") from None


def build(
    name: str,
    *,
    channels: int,
    sizes: Sequence[int],
    small_stem: bool,
    zero_init: bool,
    drop_path: float | None,
    options: Mapping[str, Any],
) -> nn.Module:
    """A network of timm, (b, channels, H, W) -> (b, net.dim), for views of each of `sizes`, of which the first is the
    size that position embeddings are made for. `net.made_with`: the arguments of `timm.create_model` that decide its
    weights.

    Raises InputError for an unknown name, options that it has not, and views that it cannot see.
    """
    said = f"encoder.name={name}"
    timm, name = library(said), name.removeprefix(PREFIX)
    _check_name(timm, name, said)
    _check_options(said, options)
    wanted: dict[str, Any] = {"img_size": sizes[0], "dynamic_img_size": True, "zero_init_last": zero_init}
    # of the pooled features, which some drop unless told: its draws could not be repeated
    wanted["drop_rate"] = 0.0
    fixed = {**options, "num_classes": 0}
    if channels != 3:
        fixed["in_chans"] = channels
    if drop_path is not None:
        fixed["drop_path_rate"] = drop_path
    net, taken = _created(timm, name, said, wanted, fixed)
    net.made_with = {key: taken[key] for key in taken if key == "img_size"} | dict(options)  # type: ignore[assignment]
    if small_stem:
        _check_stem(net, said)
    cfg = getattr(net, "pretrained_cfg", None) or {}
    heads = cfg.get("classifier") or ()
    net.classifier_names = (heads,) if isinstance(heads, str) else tuple(heads)  # type: ignore[assignment]
    return net


def _check_name(timm: Any, name: str, said: str) -> None:
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(PREFIX + n for n in near)}?" if near else ""
        raise InputError(f"{said} is not known{hint} (timm.list_models() names all {len(known)})")


def _check_options(said: str, options: Mapping[str, Any]) -> None:
    for key in options:
        if key in OURS:
            raise InputError(f"encoder.options.{key} is not given as an option; {OURS[key]}")
        if "drop" in key:
            raise InputError(
                f"encoder.options.{key}: {said} draws nothing but stochastic depth, which a resumed run repeats;"
                " use encoder.drop_path"
            )


def _created(
    timm: Any, name: str, said: str, wanted: Mapping[str, Any], fixed: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network with all of `fixed`, and with those of `wanted` that its constructor takes; and the latter."""
    while True:
        try:
            net: nn.Module = timm.create_model(name, pretrained=False, **wanted, **fixed)
            return net, wanted
        except Exception as error:  # whatever a network's constructor makes of values that it did not expect
            named = set(_QUOTED.findall(str(error))) if isinstance(error, TypeError) else set()
            unknown = named if "unexpected keyword argument" in str(error) else set()
            if refused := sorted(named & fixed.keys()):
                said_so = (
                    _not_taken(timm, name, said, refused[0]) if unknown else _fixed_by_name(said, refused[0])
                )
                raise InputError(said_so) from None
            if not unknown & wanted.keys():
                raise InputError(
                    f"{said} could not be made ({_brief(error)}); check {_checked(fixed)}"
                ) from None
            wanted = {key: value for key, value in wanted.items() if key not in unknown}


def _fixed_by_name(said: str, key: str) -> str:
    return f"encoder.options.{key} is what the name says in {said}; leave it out, or take a network of another name"


def _not_taken(timm: Any, name: str, said: str, key: str) -> str:
    if key == "drop_path_rate":
        return f"{said} has no stochastic depth; leave encoder.drop_path out"
    if key == "in_chans":
        return f"{said} sees images of three channels alone; leave encoder.sobel out"
    with _disable_current_modes(), torch.device("meta"):  # no weights, so that no generator is drawn from
        kind = type(timm.create_model(name, pretrained=False))
    known = [k for k in inspect.signature(kind).parameters if k not in OURS and "drop" not in k]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
    return f"encoder.options.{key} is not an option of {said}; {hint}"


def _checked(fixed: Mapping[str, Any]) -> str:
    given = [key for key in fixed if key not in OURS]
    return f"{' and '.join(f'encoder.options.{key}' for key in given)}{', ' if given else ''}the name and views.size"


def _brief(error: BaseException) -> str:
    return first_line(error).rstrip(".")


def _check_stem(net: nn.Module, said: str) -> None:
    """Raises InputError where the first convolution is none that a small stem could stand for."""
    if not (isinstance(getattr(net, "conv1", None), nn.Conv2d) and hasattr(net, "maxpool")):
        hint = "encoder.options.patch_size" if _takes(net, "patch_size") else "encoder.options"
        raise InputError(
            f"encoder.small_stem=true is of ResNets, and {said} begins otherwise; use encoder.small_stem=false and, for"
            f" small images, {hint}"
        )


def _takes(net: nn.Module, key: str) -> bool:
    return key in inspect.signature(type(net)).parameters


# -------------------------------------------------------------------- what is asked of a network


def width_for(net: nn.Module, name: str, channels: int, sizes: Sequence[int]) -> int:
    """The width of what a network gives for views of each of these sizes. Raises InputError where it cannot see one."""
    said, width = f"encoder.name={name}", 0

    def cannot(size: int, error: Exception) -> str:
        return f"{said} cannot see views of {size} pixels ({_brief(error)}); {_fitting(net)}"

    for out in outputs(net, 1, channels, sizes, cannot).values():
        if not isinstance(out, Tensor) or out.dim() != 2:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"{said} gives {shape} for an image and not one vector; name another network, or leave"
                " encoder.options.global_pool out"
            )
        width = out.shape[1]
    return width


def _fitting(net: nn.Module) -> str:
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is not None:
        side = patch[0] if isinstance(patch, Sequence) else patch
        return (
            f"set views.size, and the sizes of views.policies, to multiples of its patches of {side} pixels"
        )
    return "set views.size higher, or make the network smaller with encoder.options"


def patch_layers(encoder: nn.Module) -> list[nn.Module]:
    """The layers that make patches into tokens, of each trunk; none where images are not cut into patches."""
    found = [getattr(getattr(m, "patch_embed", None), "proj", None) for m in encoder.modules()]
    return [layer for layer in found if isinstance(layer, nn.Conv2d | nn.Linear)]


def undecayed(model: nn.Module) -> set[str]:
    """Names of parameters that timm's networks keep from weight decay, as position embeddings and class tokens."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if callable(own := getattr(module, "no_weight_decay", None))
        for name in own()
    }


def depths(net: nn.Module) -> dict[str, int] | None:
    """Parameter name -> which layer it lies in, counted from the input, as timm groups them; None of other networks."""
    matcher = getattr(net, "group_matcher", None)
    if matcher is None:
        return None
    group = importlib.import_module("timm.models").group_parameters
    found: dict[str, int] = group(net, matcher(coarse=False), reverse=True)
    return found


def resampled(tensors: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Weights of a file with the position embeddings (1, N, D) of another image size fitted to the network's."""
    found, own = dict(tensors), getattr(net, "pos_embed", None)
    given, grid = found.get("pos_embed"), getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if own is None or given is None or grid is None or own.shape == given.shape:
        return found
    prefix = 0 if getattr(net, "no_embed_class", False) else getattr(net, "num_prefix_tokens", 0)
    patches = given.shape[1] - prefix if given.dim() == own.dim() == 3 else 0
    if patches > 0 and given.shape[2] == own.shape[2] and math.isqrt(patches) ** 2 == patches:
        resample = importlib.import_module("timm.layers").resample_abs_pos_embed
        found["pos_embed"] = resample(given, list(grid), num_prefix_tokens=prefix)
    return found


def normalisation(name: str) -> Any:
    """Mean and standard deviation of the pixels that timm's published weights were trained on, if it has any."""
    cfg = library(f"encoder.name={name}").get_pretrained_cfg(name.removeprefix(PREFIX))
    return (tuple(cfg.mean), tuple(cfg.std)) if cfg is not None and cfg.has_weights else None
