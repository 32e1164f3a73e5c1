"""Encoders from outside the package: subclasses of `nn.Module`, or functions that make one, images -> a vector each.

Its settings, `encoder.options`, are the parameters of its constructor. One that has a parameter `channels` is given the
channels of its images, and one that has `size` the pixels of the main view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from raysurl import plugins
from raysurl.errors import InputError
from raysurl.nets.dropping import seeded
from raysurl.nets.norm import convert
from raysurl.nets.probing import outputs
from raysurl.recipe.options import options_of, parameters

OURS = ("channels", "size")


def build(
    name: str, options: Mapping[str, Any], *, channels: int, sizes: Sequence[int], norm: str
) -> nn.Module:
    """The network, with its `dim`, for images of so many channels, and views of these sizes, the main one first.

    Raises InputError for what is no encoder, and for options that it has not.
    """
    said, kind = f"encoder.name={name}", plugins.load("encoder", name)
    if not callable(kind) or isinstance(kind, nn.Module):
        raise InputError(
            f"{said} is a {type(kind).__name__}; name a subclass of nn.Module, or a function that makes it"
        )
    if isinstance(kind, type) and not issubclass(kind, nn.Module):
        raise InputError(
            f"{said} is the class {kind.__name__}, which is not an nn.Module; name a subclass of it"
        )
    takes = parameters(kind)
    given = {key: value for key, value in zip(OURS, (channels, sizes[0]), strict=True) if key in takes}
    if channels != 3 and "channels" not in takes:
        raise InputError(f"{said} sees images of three channels alone; leave encoder.sobel out")
    typed = options_of(kind, options, "encoder.options", own=OURS)
    try:
        net = kind(**typed, **given)
    except InputError:
        raise
    except Exception as error:  # whatever its constructor raises
        raise InputError(f"{said} cannot be made: {plugins.told(error, name)}") from None
    if not isinstance(net, nn.Module):
        raise InputError(f"{said} makes a {type(net).__name__}, which is not an nn.Module")
    net = convert(seeded(net), norm)
    width: Any = width_of(net, name, channels=channels, sizes=sizes)
    if not hasattr(net, "dim"):
        net.dim = width
    return net


def refuse(name: str, settings: Mapping[str, Any]) -> None:
    """Raises InputError where a setting is given that is of built-in networks alone."""
    if wrong := [key for key, value in settings.items() if value]:
        raise InputError(
            f"encoder.{wrong[0]} is of networks that are built in, and encoder.name={name} is not; leave it out, its"
            " settings are encoder.options"
        )


def width_of(net: nn.Module, name: str, *, channels: int, sizes: Sequence[int]) -> int:
    """The width D of its output (b, D) for views of each size. Raises InputError where it gives none, or another."""
    said, widths = f"encoder.name={name}", set()

    def cannot(size: int, error: Exception) -> str:
        return f"{said} cannot see views of {size} pixels: {plugins.told(error, name)}; set views.size as it needs"

    for size, out in outputs(net, 2, channels, sizes, cannot).items():
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 2 or not out.is_floating_point():
            shape = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"{said} gives {shape} for two images of {size} pixels, and not a vector each, float (2, D)"
            )
        widths.add(out.shape[1])
    if len(widths) > 1:
        raise InputError(
            f"{said} gives vectors of {min(widths)} and of {max(widths)} values, by the size of views"
        )
    (width,) = widths
    told = getattr(net, "dim", width)
    if told != width:
        raise InputError(
            f"{said} says dim={told} and gives vectors of {width} values; leave dim out, it is measured"
        )
    return int(width)
