"""Protocols from outside the package: a module, or what has the same names (see raysurl.evaluate)."""

from __future__ import annotations

import sys
from collections.abc import Set
from types import FunctionType, SimpleNamespace
from typing import Any

from raysurl import plugins
from raysurl.errors import InputError

PARTS = ("NEEDS", "OF_PIXELS", "run", "names")


def plugged(name: str) -> Any:
    """The protocol of a name that is not built in; a function stands for the module that it is of.

    Raises InputError for what is no protocol.
    """
    said, found = f"eval.protocols={name}", plugins.load("protocol", name)
    if isinstance(found, FunctionType):
        around = vars(sys.modules[found.__module__])
        known = {part: around[part] for part in (*PARTS, "check") if part in around}
        found = SimpleNamespace(**{**known, "run": found})
    if missing := [part for part in PARTS if not hasattr(found, part)]:
        raise InputError(
            f"{said} has no {missing[0]}; a protocol has {', '.join(PARTS)} (see raysurl.evaluate)"
        )
    if not isinstance(found.NEEDS, Set) or not all(isinstance(need, str) for need in found.NEEDS):
        raise InputError(f"{said}: NEEDS is not a set of names, for example frozenset({{'labels'}})")
    for part in ("run", "names"):
        if not callable(getattr(found, part)):
            raise InputError(f"{said}: {part} is not a function")
    return found
