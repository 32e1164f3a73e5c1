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

FILE, HELD = ".lock", ".held"  # HELD is added to the name of a lock, see _Claim
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
        self._path = path
        self._claim: _Claim | None = None
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
                    raise HeldError(_said(os.pread(self._file, 4096, 0))) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self._claim = _Claim(self._path.with_name(self._path.name + HELD), deadline)
                break
            time.sleep(LOOK_S)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _who(), 0)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._claim:
            self._claim.let_go()
        os.close(self._file)


class _Claim:
    """For file systems that know no locks: a file that one process alone can make, and that it removes when it ends.

    That of a process which was killed stays. On its own host it is seen to be nobody's; of another host a person must
    say it, by removing the file.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        self._path, self._content = path, _who()
        while not self._made():
            try:
                found = path.read_bytes()
            except FileNotFoundError:
                continue
            if _is_dead(found, path):
                self._clear(found)
            elif time.monotonic() >= deadline:
                raise HeldError(f"{_said(found)} (if it was killed, remove {path})")
            else:
                time.sleep(LOOK_S)

    def _made(self) -> bool:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise storage_error(error, self._path) or error from None
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            os.write(file, self._content)
        os.close(file)
        return True

    def _clear(self, dead: bytes) -> None:
        """Take a dead process's claim away; one at a time does it, so that nobody takes away a new one."""
        turn = self._path.with_name(f"{self._path.name}.clearing")
        try:
            turn.mkdir()
        except FileExistsError:
            with contextlib.suppress(OSError):
                if time.time() - turn.stat().st_mtime > LOCK_S:  # whoever did it has died
                    turn.rmdir()
            time.sleep(LOOK_S)
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.read_bytes() == dead:
                self._path.unlink()
        turn.rmdir()

    def let_go(self) -> None:
        with contextlib.suppress(OSError):
            if self._path.read_bytes() in (self._content, b""):
                self._path.unlink()


def _who() -> bytes:
    """The calling process, as its lock says it."""
    process = os.getpid()
    who = {"host": socket.gethostname(), "process": process, "since": time.time()}
    return json.dumps({**who, "began": _began(process), "processes": _processes()}).encode()


def _said(content: bytes) -> str:
    """Who holds a lock, in words."""
    try:
        who = plain.mapping(content)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        return f"process {who['process']} on host {who['host']} has worked in it since {since}"
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        return "a process that has not said its name works in it"


def _is_dead(content: bytes, path: Path) -> bool:
    """Whether the process that a claim names is one of this host and has ended, or died before it had said its name."""
    try:
        who = plain.mapping(content)
        host, process, began = who["host"], int(who["process"]), who["began"]
    except (ValueError, KeyError, TypeError, OverflowError):
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > LOCK_S
        return False
    if host != socket.gethostname() or who.get("processes") != _processes():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return began is not None and _began(process) != began


def _began(process: int) -> int | None:
    """When a process began, in ticks since its host did: another one of its number began later. None: it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(fields[18])


def _processes() -> str | None:
    """Whose numbers of processes are these: a container counts its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None
