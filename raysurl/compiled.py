"""Code that numba compiles, and where all processes of a machine find it: in one folder for each state of the code.

numba keeps what it compiles beside the source file, where the copy of a job's working directory finds nothing, and asks
of that file alone whether it changed, though what it compiled has functions of others in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

Function = TypeVar("Function", bound=Callable[..., Any])
PACKAGE = Path(__file__).parent
SOURCES = ("compiled.py", "views/colour.py", "views/pixels.py", "hierarchy/*.py", "evaluate/candidates.py")
"""Files whose functions are compiled, and those from which they take functions and constants."""


def compiled(function: Function) -> Function:
    """Compile with numba; sums may be reordered, which is the same on every call. Other threads go on beside it, and
    what is divided by zero is not a number, as in numpy. It is the same code for all sizes and settings.

    Rows are divided and set value by value: numba is far longer at compiling what does it to a whole row.
    """
    as_said = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **as_said)(function)
    except RuntimeError:  # no place where this user may keep it: each process compiles for itself
        return numba.njit(**as_said)(function)


@cache
def state() -> str:
    """Of the sources: where any of them changed, all is compiled anew."""
    files = sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


class ByState:
    """A locator of numba's, for this package's files."""

    def __init__(self, line: int, file: str) -> None:
        self._py_file, self.line = file, line
        kept = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(kept).expanduser() / "raysurl" / "compiled" / state() / Path(file).parent.name

    @classmethod
    def from_function(cls, function: Any, file: str) -> ByState | None:
        """None, for which numba looks on, for other files and where nothing can be written."""
        if not Path(file).is_relative_to(PACKAGE):
            return None
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
            locator = cls(function.__code__.co_firstlineno, file)
            locator.ensure_cache_path()
            return locator
        return None

    def ensure_cache_path(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.folder).close()

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return state()

    def get_disambiguator(self) -> str:
        return str(self.line)


caching.CompileResultCacheImpl._locator_classes = [ByState, *caching.CompileResultCacheImpl._locator_classes]
