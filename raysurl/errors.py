"""The kinds of failure that a person sees as one sentence, never as a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path


def printable(text: str) -> str:
    """Text on one line: control characters, which names of files and columns may hold, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException, most: int = 200) -> str:
    """What a library's error says first, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


class InputError(ValueError):
    """Something given is wrong: the message names it and what would be valid, on one line. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RunError(RuntimeError):
    """A run that had begun could not go on; what it had finished is kept. Exit code 1."""

    exit_code = 1


class UndecidedError(RunError):
    """All was run, and what was asked cannot be answered by it. Exit code 3."""

    exit_code = 3


class DivergedError(RunError):
    """A loss became infinite or NaN; the message names the step and what can be done."""


class UnhealthyError(RunError):
    """A run was ended because of what was found wrong with it, as its recipe asks; the message says what."""


class StorageError(RunError):
    """A place that the work writes to is full, read-only, gone, or broken; `reason`: the words of that alone."""

    reason = ""


def out_of_memory(error: BaseException) -> bool:
    """Whether it is what Python, CUDA or torch's CPU allocator raise when memory runs out."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return named or "can't allocate memory" in str(error) or "not enough memory" in str(error)


# what a network raises too, or what says nothing of a file
_NOT_OF_FILES = (ConnectionError, TimeoutError, InterruptedError, ChildProcessError)
_NUMBER = re.compile(
    r"(?:os error |code: |Errno )(\d+)"
)  # of libraries that put an error of the system into words
_WORDS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full",
    errno.EROFS: "read-only disk",
    errno.ESTALE: "its file system is gone",
    errno.ENOTCONN: "its file system is gone",
}


def storage_error(error: BaseException, where: Path) -> StorageError | None:
    """What an error of the system says about a file or folder, in one sentence; None where it is about something else.

    `where`: the folder that was written to, named where the error names no file.
    """
    if isinstance(error, _NOT_OF_FILES):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else None
    if number is None:
        return None
    named = getattr(error, "filename", None)
    path = os.fsdecode(named) if isinstance(named, str | bytes) and named else str(where)
    words = os.strerror(number)
    words = f"{_WORDS[number]}, {words}" if number in _WORDS else words
    made = StorageError(printable(f"{path} cannot be written or read ({words})"))
    made.reason = words
    return made


def unwritable(directory: Path) -> StorageError | None:
    """Why nothing can be written into a folder at this moment, found by writing into it; None where all is well."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe-") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(AttributeError):
            del error.filename
        return storage_error(error, directory)
    return None
