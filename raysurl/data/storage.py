"""Local paths and URIs behind one interface: pyarrow's own file systems (file, s3, gs, …), else fsspec's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs

from raysurl.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A file under a root: its path relative to the root, with forward slashes, and its size in bytes."""

    path: str
    size: int


@lru_cache(maxsize=64)
def locate(path: str) -> tuple[Any, str]:
    """The pyarrow file system of a local path or URI, and the path in it.

    Raises InputError where no installed file system opens the URI.
    """
    if not is_uri(path):
        return fs.LocalFileSystem(), absolute(path)
    try:
        filesystem, base = fs.FileSystem.from_uri(path)
        return filesystem, base
    except (pa.ArrowInvalid, NotImplementedError):
        pass  # not a scheme of pyarrow's: fsspec knows more
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error}") from None
    try:
        known, base = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be opened: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(known)), base


def is_uri(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """A local path that means the same in every process; URIs are left as they are."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def join(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}" if path else base


def read_bytes(root: str, path: str) -> bytes:
    """All bytes of file `path` under `root`; raises OSError."""
    filesystem, base = locate(root)
    with filesystem.open_input_stream(join(base, path), compression=None) as stream:
        return bytes(stream.read())


def kind(path: str, key: str) -> str:
    """ "file" or "folder"; InputError, naming the recipe key, where there is neither."""
    filesystem, base = locate(path)
    try:
        found = filesystem.get_file_info(base).type
    except OSError as error:
        raise InputError(f"{key}={path} cannot be opened: {error}") from None
    if found == fs.FileType.NotFound:
        raise InputError(f"{key}={path} does not exist; give an existing path or URI")
    return "folder" if found == fs.FileType.Directory else "file"


def list_files(path: str, key: str) -> list[Entry]:
    """All files under a folder, recursively, sorted by path; names that start with a dot are left out."""
    filesystem, base = locate(path)
    try:
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise InputError(f"{key}={path} cannot be listed: {error}") from None
    prefix = len(base.rstrip("/")) + 1
    entries = [Entry(info.path[prefix:], info.size or 0) for info in found if info.type == fs.FileType.File]
    return sorted((e for e in entries if "/." not in f"/{e.path}"), key=lambda e: e.path)


def split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """For example "a/b/*.parquet" → ("a/b", pattern of the rest); a path without wildcards → (path, None).

    `*` stays within a folder, `**/` crosses folders. A URI's `?` starts its query, where it is no wildcard.
    """
    wildcard = re.compile(r"[*\[]" if is_uri(path) else r"[*?\[]")
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if wildcard.search(part)), None)
    if first is None:
        return path, None
    rest = re.escape("/".join(parts[first:]))
    rest = rest.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    rest = rest.replace(r"\[", "[").replace(r"\]", "]").replace(r"\-", "-")
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), re.compile(rest)


def stamp(path: str) -> tuple[int, int]:
    """(modification time in ns, size) of a file, to tell a changed file from the one read before."""
    filesystem, base = locate(path)
    info = filesystem.get_file_info(base)
    return int(info.mtime_ns or 0), int(info.size or 0)
