"""Local paths as people give them, on the command line or in a recipe."""

from __future__ import annotations

import os
from pathlib import Path

from raysurl.errors import InputError

LONGEST_NAME = 255  # bytes of one name, on every file system that Linux has
_SHOWN = 60  # characters of a text that is too long to be shown whole


def given_path(key: str, text: str) -> Path:
    """The path given as `key=text`, `~` expanded; nothing need be there. Raises InputError where nothing can be."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
    if "://" in text:
        raise InputError(f"{key}={shown} is a URI; only data are read from URIs, give a local path")
    try:
        path = Path(text).expanduser()
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            raise ValueError(f"a name in it is longer than {LONGEST_NAME} bytes")
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # what is to be there, its reader or writer says
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a null byte, a home that nobody has
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{key}={shown} cannot be a path: {reason}") from None
    return path
