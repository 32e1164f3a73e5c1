"""JSON from files that may hold anything by now: a value of the kind that is asked for, or ValueError; `found_in`: or
nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST = 2**24  # bytes of a file of results


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for everything else, also what is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def mapping(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text. Raises ValueError for everything else."""
    value = parsed(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a mapping")
    return value


def read_mapping(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises OSError, or ValueError for everything else."""
    return mapping(path.read_bytes())


def found_in(path: Path) -> dict[str, Any]:
    """The object of a JSON file as far as it is there and can be read; of one of more than MOST bytes nothing."""
    try:
        return read_mapping(path) if path.stat().st_size < MOST else {}
    except (OSError, ValueError):
        return {}
