"""One module per method, a package where it has a memory of its own: its docstring maps paper and equation to line and
states every deviation. Nothing is registered: a method is found by the name of its module."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from raysurl.errors import InputError

if TYPE_CHECKING:
    from raysurl.method import Method


def available() -> list[str]:
    """Names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[Method]:
    """The method class of module `raysurl.methods.<name>`; InputError names the methods there are."""
    if name not in available():
        raise InputError(f"method.name={name!r} is not a method; choose one of {', '.join(available())}")
    from raysurl.method import Method  # and with it torch, which a recipe without a method does not need

    module = importlib.import_module(f"{__name__}.{name}")
    (cls,) = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__.startswith(module.__name__)
    ]
    return cls
