"""What the commands share in reading their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raysurl.errors import InputError
from raysurl.recipe import split_argument

if TYPE_CHECKING:
    from raysurl.encoder import TrainedEncoder


def take(arguments: Sequence[str], *keys: str) -> tuple[dict[str, str], dict[str, str]]:
    """The arguments that are the command's own, by key, and all others."""
    given = dict(split_argument(a) for a in arguments)
    return {key: given.pop(key) for key in keys if key in given}, given


def trained_encoder(given: Mapping[str, str]) -> TrainedEncoder:
    """The encoder of `run=`, its recipe changed by the other arguments."""
    from raysurl.encoder import load_encoder

    if not given.get("run"):
        raise InputError("name what to use: run=DIR of a finished run, or run=FILE of an encoder.safetensors")
    return load_encoder(given["run"], {key: text for key, text in given.items() if key != "run"})
