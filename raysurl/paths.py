"""Local paths as people give them, on the command line or in a recipe; where results go by default, and files that are
whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from raysurl.errors import InputError

LONGEST_NAME = 255  # bytes of one name, on every file system that Linux has
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in a submitted job
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
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


def place(key: str, text: str) -> Path:
    """The absolute path of what a person names to be written to. Raises InputError where it would be lost."""
    if _URI.match(text):
        raise InputError(
            f"{key}={text} is a URI, and results are written to a folder; write {key}=/A/FOLDER, on a disk that all"
            f" nodes share, and copy it to {text} afterwards"
        )
    path = given_path(key, text)
    if _JOB in os.environ and (not path.is_absolute() or path.is_relative_to(Path.cwd())):
        raise InputError(
            f"{key}={text} would be lost: a submitted job works in a copy of its files, which Ray removes; write a"
            f" whole path elsewhere, for example {key}={_home() / path.name}"
        )
    return _text(key, path.absolute())


def new_place(key: str, text: str) -> Path:
    """As `place`, of what is not there yet. Raises InputError where it is, or where nothing can be written."""
    target = place(key, text)
    if os.path.lexists(target):
        raise InputError(f"{key}={target} exists already; name another {key}=")
    return writable(key, target)


def new_file(key: str, text: str, *kinds: str) -> Path:
    """As `new_place`, of a file whose name ends as one of `kinds`."""
    if not text.endswith(kinds):
        raise InputError(f"name the file to write: {' or '.join(f'{key}=FILE{kind}' for kind in kinds)}")
    return new_place(key, text)


def writable(key: str, target: Path) -> Path:
    """The path as it is. Raises InputError where the folder that is to hold it cannot be written to, or made."""
    there = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{key}={target} cannot be written: {there} is no folder that may be written to")
    return target


def _text(key: str, path: Path) -> Path:
    """The path, if recipes, records and Ray can name it. Raises InputError for bytes that are no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        said = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(
            f"{key}={said} is not UTF-8, and results go under names that are; give another {key}="
        ) from None
    return path


def default_place(kind: str) -> Path:
    """The folder of all that is named by default; under the home directory inside a submitted job."""
    return _text("output", _home() if _JOB in os.environ else Path.cwd() / kind)


def _home() -> Path:
    return Path.home() / "raysurl-runs"


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which stands at `path` afterwards; an error leaves what was there."""
    # short, whatever the name is, and its own: several processes may write into one folder
    partial = path.with_name(f".{path.name[:50]}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
