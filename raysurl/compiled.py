"""Code that numba compiles. It is kept for all processes of a machine, and is the same for all sizes and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile with numba; sums may be reordered, which is the same on every call. Other threads go on beside it, and
    what is divided by zero is not a number, as in numpy.

    Rows are divided and set value by value: numba is far longer at compiling what does it to a whole row.
    """
    as_said = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **as_said)(function)
    except RuntimeError:  # no place where this user may keep it: each process compiles for itself
        return numba.njit(**as_said)(function)
