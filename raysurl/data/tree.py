"""A local folder as a list of files: each real file once, whatever leads to it, and what could not be opened.

The folders themselves are walked first and then, round by round, what links lead to: so a file keeps the path without
links where it has one. A file or folder is known by (device, inode): a second link to it, a loop of links and a hard
link add nothing. A link to a folder that holds the walked one is not followed, for that would list its surroundings.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

from raysurl.errors import printable

Key = tuple[int, int]  # (device, inode)
OF_A_RUN = {"recipe.yaml", "metrics.jsonl"}  # what a run has written, pictures among it, are no data


@dataclass(frozen=True)
class FileEntry:
    """A file under a root: its path relative to the root, with forward slashes, its size in bytes and its time in ns.

    `key`: what it is whatever leads to it, where that is known.
    """

    path: str
    size: int
    time: int = 0
    key: Key | None = None


@dataclass(frozen=True)
class Missing:
    """What is there by name and cannot be opened; `folder`: it is a folder, so that what is in it is not known."""

    path: str
    reason: str
    folder: bool = False


@dataclass
class Tree:
    """Files sorted by path; `missing`: see `Missing`; `repeated`: paths left out, for they lead to what is listed;
    `runs`: folders left out, for a run has written them."""

    files: list[FileEntry]
    missing: list[Missing] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def remark(self) -> str:
        """What was left out because it is listed already or no data, as a phrase for the log."""
        remarks = []
        if count := len(self.repeated):
            what = "path leads" if count == 1 else "paths lead"
            remarks.append(
                f"{count:,} {what} to files or folders that are listed already and left out: {shown(self.repeated)}"
            )
        if count := len(self.runs):
            what = "folder of a run is" if count == 1 else "folders of runs are"
            remarks.append(f"{count:,} {what} left out: {shown(self.runs)}")
        return "; ".join(remarks)


def walk(root: str) -> Tree:
    """All files under the folder `root`; names that start with a dot are left out. Raises OSError for `root` itself."""
    found = _Walk(root)
    found.folder(root, "")
    while found.links:
        links, found.links = sorted(found.links), []
        for path, name in links:
            found.follow(path, name)
    found.files.sort(key=lambda entry: entry.path)
    missing = sorted(found.missing, key=lambda lost: lost.path)
    return Tree(found.files, missing, sorted(found.repeated), sorted(found.runs))


class _Walk:
    """The state of one walk. Paths as text relative to the root beside names as the file system has them."""

    def __init__(self, root: str) -> None:
        self.files: list[FileEntry] = []
        self.missing: list[Missing] = []
        self.repeated: list[str] = []
        self.runs: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.seen: dict[int, set[int]] = {}  # inodes by device
        self.above = _folders_above(root)

    def folder(self, name: str, path: str) -> None:
        """List a folder and what is below it; links are kept for later."""
        waiting = [(name, path)]
        while waiting:
            name, path = waiting.pop()
            try:
                if self._known(os.stat(name), path, folder=True):
                    continue
                with os.scandir(name) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                if not path:
                    raise
                self.missing.append(Missing(path, f"it cannot be listed: {reason(error)}", folder=True))
                continue
            if path and {entry.name for entry in entries} >= OF_A_RUN:
                self.runs.append(path)
                continue
            inner = [found for entry in entries if (found := self._entry(entry, path))]
            waiting += reversed(inner)

    def _entry(self, entry: os.DirEntry[str], above: str) -> tuple[str, str] | None:
        """Take a file and keep a link for later; a folder is returned."""
        if entry.name.startswith("."):
            return None
        path = f"{above}/{text_of(entry.name)}" if above else text_of(entry.name)
        if entry.is_symlink():
            self.links.append((path, entry.path))
        elif entry.is_dir(follow_symlinks=False):
            return entry.path, path
        else:
            self._file(entry.path, path)
        return None

    def follow(self, path: str, name: str) -> None:
        """Take what a link leads to."""
        try:
            leads_to_folder = stat.S_ISDIR(os.stat(name).st_mode)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            why = f"it is a link to {_target(name)}, which does not exist" if gone else reason(error)
            self.missing.append(Missing(path, why))
            return
        if leads_to_folder:
            self.folder(name, path)
        else:
            self._file(name, path)

    def _file(self, name: str, path: str) -> None:
        try:
            about = os.stat(name)
        except OSError as error:
            self.missing.append(Missing(path, f"it cannot be opened: {reason(error)}"))
            return
        if not stat.S_ISREG(about.st_mode):
            self.missing.append(Missing(path, "it is neither a file nor a folder"))
        elif not self._known(about, path):
            self.files.append(FileEntry(path, about.st_size, about.st_mtime_ns, (about.st_dev, about.st_ino)))

    def _known(self, about: os.stat_result, path: str, *, folder: bool = False) -> bool:
        inodes = self.seen.setdefault(about.st_dev, set())
        if about.st_ino in inodes or (folder and path and (about.st_dev, about.st_ino) in self.above):
            self.repeated.append(path)
            return True
        inodes.add(about.st_ino)
        return False


def _folders_above(root: str) -> set[Key]:
    """The folder and all that hold it."""
    found: set[Key] = set()
    path = os.path.realpath(root)
    while True:
        try:
            about = os.stat(path)
            found.add((about.st_dev, about.st_ino))
        except OSError:
            pass
        if path == (path := os.path.dirname(path)):
            return found


def _target(name: str) -> str:
    try:
        return text_of(os.readlink(name))
    except OSError:
        return "something"


# -------------------------------------------------------------------- names


def text_of(name: str) -> str:
    """A name as Python gives it → valid UTF-8: a byte that is none becomes `\\xe9`; `name_of` undoes it."""
    return re.sub(
        "\\\\(?=x[0-9a-f]{2})|[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name
    )


def name_of(text: str) -> str:
    """What `text_of` was given."""
    return os.fsdecode(_bytes_of(text)) if "\\x" in text else text


def _bytes_of(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode())


def shown(paths: list[str], most: int = 3) -> str:
    return ", ".join(map(printable, paths[:most])) + (", …" if len(paths) > most else "")


def reason(error: Any) -> str:
    """Why the system refused, without the path, which stands beside it."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:1].lower() + text[1:]
