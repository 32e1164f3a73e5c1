"""One process at a time works in a directory: a lock that its holder's death releases, and that names who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from raysurl import plain
from raysurl.errors import InputError, RunError, storage_error

FILE = ".lock"
LOCK_S = 60.0  # that a process which has lost its driver may take to let go of a directory
LOOK_S = 0.1
# of file systems that know no locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class HeldError(RunError):
    """Another process works in the directory."""


@contextlib.contextmanager
def working_in(directory: Path, *, named: str) -> Iterator[None]:
    """Nobody else works in `directory` during the block; `named` is what a person calls it, for example output=DIR.

    Raises InputError, which names host and process, where somebody does. The directory must exist.
    """
    try:
        lock = _Lock(directory / FILE, patience_s=0)
    except HeldError as error:
        raise InputError(
            f"{named} is in use: {error}; wait until it has ended, or name another directory"
        ) from None
    with lock:
        yield


@contextlib.contextmanager
def following(directory: Path, name: str = FILE) -> Iterator[None]:
    """As `working_in`, by a process that takes the place of one that has died or is dying: it waits for its end.

    Raises RunError where that does not come.
    """
    try:
        lock = _Lock(directory / name, patience_s=LOCK_S)
    except HeldError as error:
        raise RunError(f"{directory} is in use: {error}, and it has not ended in {LOCK_S:.0f} s") from None
    with lock:
        yield


class _Lock:
    """`flock` on a file that says who holds it: the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path, *, patience_s: float) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, path) or error from None
        try:
            self._take(patience_s)
        except BaseException:
            os.close(self._file)
            raise

    def _take(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise HeldError(self._holder()) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
            time.sleep(LOOK_S)
        who = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(who).encode(), 0)

    def _holder(self) -> str:
        try:
            who = plain.mapping(os.pread(self._file, 4096, 0))
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
            return f"process {who['process']} on host {who['host']} has worked in it since {since}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that has not said its name works in it"

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
