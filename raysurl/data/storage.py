"""Local paths and URIs behind one interface: pyarrow's own file systems (file, s3, gs, …), else fsspec's.

Names of local files may be any bytes. Within the program a path under a root is text that is valid everywhere: bytes
that are no UTF-8 are written `\\xe9` in it, see `tree.text_of`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from raysurl.data import tree
from raysurl.data.tree import FileEntry, Missing, Tree
from raysurl.errors import InputError, first_line

__all__ = ["PARQUET_ERRORS", "FileEntry", "Missing", "Tree"]

# what pyarrow raises on damaged files; names in them may be no UTF-8, and sizes anything
PARQUET_ERRORS = (
    OSError,
    UnicodeError,
    MemoryError,
    OverflowError,
    KeyError,
    IndexError,
    TypeError,
    pa.ArrowException,
)


REACH_S = 60.0  # that a remote file system may take to answer at first


@lru_cache(maxsize=64)
def locate(path: str) -> tuple[Any, str]:
    """The pyarrow file system of a local path or URI, and the path in it.

    Raises InputError where no installed file system opens the URI.
    """
    if not is_uri(path):
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"the name of {tree.text_of(path)} is not UTF-8; rename it, or name the folder that holds it"
            ) from None
        return fs.LocalFileSystem(), absolute(path)
    found: tuple[Any, str] = _reached(lambda: _filesystem(path), f"{path} cannot be opened")
    return found


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        filesystem, base = fs.FileSystem.from_uri(uri)
        return filesystem, base
    except (pa.ArrowInvalid, NotImplementedError):
        pass  # not a scheme of pyarrow's: fsspec knows more
    known, base = fsspec.core.url_to_fs(uri)
    if isinstance(known, LocalFileSystem):
        return fs.LocalFileSystem(), base
    return fs.PyFileSystem(fs.FSSpecHandler(known)), base


def _reached(work: Callable[[], Any], said: str) -> Any:
    """What the first call to a remote file system gives. Raises InputError for whatever its library raises, which is
    anything, and where it does not answer: some try again for a quarter of an hour."""
    found: list[Any] = []
    raised: list[Exception] = []
    ended = threading.Event()

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            raised.append(error)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    if not ended.wait(REACH_S):
        raise InputError(f"{said}: no answer in {REACH_S:.0f} s; look at the network and its credentials")
    if raised:
        lines = str(raised[0]).strip().splitlines() or [type(raised[0]).__name__]
        raise InputError(f"{said}: {lines[0][:300]}") from None
    return found[0]


def is_uri(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """A local path that means the same in every process; URIs are left as they are."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def join(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}" if path else base


def text_name(name: str, root: str) -> str:
    """A name within a local root as paths have it, see `tree.text_of`; one of a URI stays."""
    return name if is_uri(root) else tree.text_of(name)


def local_file(root: str, path: str) -> bytes | None:
    """The name of a local file as the file system has it; None where it is not local."""
    filesystem, base = locate(root)
    return join(base, tree.name_of(path)).encode(errors="surrogateescape") if _is_local(filesystem) else None


def read_bytes(root: str, path: str) -> bytes:
    """All bytes of file `path` under `root`; raises OSError."""
    return read_stamped(root, path)[0]


def read_stamped(root: str, path: str) -> tuple[bytes, tuple[int, int]]:
    """All bytes of a file, and its size and time when it was read (0 for a remote one); raises OSError."""
    name = local_file(root, path)
    if name is not None:
        with open_local(name) as file:
            about = os.fstat(file.fileno())
            return file.read(), (about.st_size, about.st_mtime_ns)
    filesystem, base = locate(root)
    with filesystem.open_input_stream(join(base, path), compression=None) as stream:
        content = bytes(stream.read())
    return content, (len(content), 0)


def open_local(name: bytes) -> Any:
    """A regular file, opened to read its bytes; a pipe would let its reader wait for ever. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file")


@contextmanager
def opened(root: str, path: str) -> Iterator[Any]:
    """A file of pyarrow's, to be read in any order; raises OSError."""
    name = local_file(root, path)
    if name is None:
        filesystem, base = locate(root)
        with filesystem.open_input_file(join(base, path)) as stream:
            yield stream
        return
    open_local(name).close()
    with pa.OSFile(name) as stream:
        yield stream


def read_text(root: str, path: str) -> str:
    """A text file, whatever its byte order mark; bytes that are no UTF-8 as in paths. Raises OSError."""
    content = read_bytes(root, path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    return tree.text_of(content.decode("utf-8-sig", errors="surrogateescape"))


def kind(path: str, key: str) -> str:
    """ "file" or "folder"; InputError, naming the recipe key, where there is neither."""
    filesystem, base = locate(path)
    if _is_local(filesystem):
        return _local_kind(base, f"{key}={path}")
    found = _reached(lambda: filesystem.get_file_info(base), f"{key}={path} cannot be opened").type
    if found == fs.FileType.NotFound:
        raise InputError(f"{key}={path} does not exist; give an existing path or URI")
    return "folder" if found == fs.FileType.Directory else "file"


def _local_kind(path: str, given: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise InputError(
                f"{given} is a link to {os.readlink(path)}, which does not exist; give an existing path or URI"
            ) from None
        raise InputError(f"{given} does not exist; give an existing path or URI") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{given} cannot be opened: {tree.reason(error)}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InputError(f"{given} is neither a file nor a folder; give an existing path or URI")
    return "folder" if stat.S_ISDIR(mode) else "file"


def list_files(path: str, key: str) -> Tree:
    """All files under a folder, recursively, sorted by path; names that start with a dot are left out.

    A local file or folder is listed once, whatever leads to it, see `raysurl.data.tree`. Raises InputError where the
    folder itself cannot be listed.
    """
    filesystem, base = locate(path)
    try:
        if _is_local(filesystem):
            return tree.walk(base)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={path} cannot be listed: {tree.reason(error)}") from None
    try:
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    except Exception as error:  # a remote file system's library raises anything
        raise InputError(f"{key}={path} cannot be listed: {first_line(error, 300)}") from None
    prefix = len(base.rstrip("/")) + 1
    entries = [
        FileEntry(info.path[prefix:], info.size or 0, info.mtime_ns or 0)
        for info in found
        if info.type == fs.FileType.File
    ]
    return Tree(sorted((e for e in entries if "/." not in f"/{e.path}"), key=lambda e: e.path))


def split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """For example "a/b/*.parquet" → ("a/b", pattern of the rest); a path without wildcards → (path, None).

    `*` stays within a folder, `**/` crosses folders. A URI's `?` starts its query, where it is no wildcard. What is
    there under its literal name is no pattern.
    """
    if not is_uri(path) and os.path.lexists(path):
        return path, None
    wildcard = re.compile(r"\*|\[[^]]+\]" if is_uri(path) else r"[*?]|\[[^]]+\]")
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if wildcard.search(part)), None)
    if first is None:
        return path, None
    rest = "".join(_pattern(piece) for piece in re.split(r"(\*\*/|[*?]|\[[^]/]+\])", "/".join(parts[first:])))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), re.compile(rest, re.DOTALL)


def _pattern(piece: str) -> str:
    """A wildcard, or the text between two, as a regular expression."""
    if len(piece) > 2 and piece[0] == "[" and piece[-1] == "]":
        negated = piece[1] in "!^" and len(piece) > 3
        inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", piece[2:-1] if negated else piece[1:-1])
        try:
            re.compile(f"[{inside}]")
        except re.error:  # a range from high to low
            return re.escape(piece)
        return f"[^/{inside}]" if negated else f"[{inside}]"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))


def stamp(path: str) -> tuple[int, int]:
    """(size in bytes, modification time in ns) of a file, to tell a changed file from the one read before.

    (−1, 0) where it is gone.
    """
    return stamp_of(path, "")


def stamp_of(root: str, path: str) -> tuple[int, int]:
    """As `stamp`, of file `path` under `root`."""
    name = local_file(root, path)
    try:
        if name is not None:
            about = os.stat(name)
            return about.st_size, about.st_mtime_ns
        filesystem, base = locate(root)
        info = filesystem.get_file_info(join(base, path))
    except OSError:
        return -1, 0
    return (-1, 0) if info.type == fs.FileType.NotFound else (int(info.size or 0), int(info.mtime_ns or 0))


def identity(root: str, path: str) -> tuple[int, int] | None:
    """(device, inode) of a local file; None of one that is gone or not local."""
    name = local_file(root, path)
    try:
        about = None if name is None else os.stat(name)
    except OSError:
        return None
    return None if about is None else (about.st_dev, about.st_ino)


def _is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, fs.LocalFileSystem)
