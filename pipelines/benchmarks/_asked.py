"""The settings of a benchmark, from its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysurl.errors import InputError
from raysurl.recipe import yaml_argument


def asked_for(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, and what `key=value` arguments say instead. Raises InputError for a key that is not among them."""
    asked = dict(yaml_argument(a) for a in arguments)
    if unknown := set(asked) - set(defaults):
        raise InputError(f"{', '.join(sorted(unknown))} is not a setting; there are {', '.join(defaults)}")
    return {**defaults, **asked}


def parts_of(given: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The setting `parts`, one name or a list. Raises InputError for one that is not known."""
    parts = [given["parts"]] if isinstance(given["parts"], str) else list(given["parts"])
    if unknown := [part for part in parts if part not in known]:
        raise InputError(f"parts={unknown[0]} is none; choose of {', '.join(known)}")
    return parts
