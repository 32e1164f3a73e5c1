"""Methods, encoders, data sources, protocols and policies from outside the package.

A name that is not built in is looked for among the entry points of installed packages (GROUPS), and
`./my_method.py:MyMethod` names what a file holds. What a file holds belongs to a module of its own,
`raysurl.plugins.file_<path>_<SHA-256>`, whose name says where its text is and which text it is: any process that
unpickles a class of it imports the same text, or says in one sentence why it cannot. A recipe keeps the SHA-256 of each
file (`Recipe.plugins`), so that another text is refused when the run is read again.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from raysurl.errors import InputError, first_line
from raysurl.paths import given_path, sha256

Kind = Literal["method", "encoder", "data", "protocol", "policy"]
GROUPS: dict[str, str] = {  # kind -> group of entry points
    "method": "raysurl.methods",
    "encoder": "raysurl.encoders",
    "data": "raysurl.data",
    "protocol": "raysurl.protocols",
    "policy": "raysurl.policies",
}
SETTINGS: dict[str, str] = {  # kind -> the setting that names one
    "method": "method.name",
    "encoder": "encoder.name",
    "data": "data.name",
    "protocol": "eval.protocols",
    "policy": "views.policies",
}
packages: dict[str, str] = {}  # of which something was loaded in this process, and their versions

__path__: list[str] = []  # the modules of files are below this one, so that it is imported before any of them
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<inside>.*))?", re.DOTALL)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # that a package may give
_MODULE = re.compile(r"file_(?P<path>(?:[0-9a-f]{2})+)_(?P<digest>[0-9a-f]{64})")
_given: dict[tuple[str, str], Any] = {}
_pins: dict[str, str] = {}  # path -> SHA-256 of files, as the recipe has them that was read last


# -------------------------------------------------------------------- names


def is_file(name: str) -> bool:
    """Whether a name is of what a file holds: `PATH.py:NAME`, or `PATH.py` alone."""
    return _FILE.fullmatch(name) is not None


def absolute(name: str) -> str:
    """The name with the whole path of its file, if it names one. Raises InputError for what can be no path."""
    found = _FILE.fullmatch(name)
    if found is None:
        return name
    inside = "" if found["inside"] is None else f":{found['inside']}"
    return f"{os.path.abspath(given_path('a plug-in', found['path']))}{inside}"


def short(name: str) -> str:
    """What a name is called where a path would be in the way: what it names inside its file, or the file's name."""
    found = _FILE.fullmatch(name)
    return (found["inside"] or Path(found["path"]).stem) if found else name


def names(kind: Kind) -> dict[str, str]:
    """All that installed packages offer of a kind: name -> package and version. Nothing is imported."""
    return {name: " and ".join(sorted(package for package, _ in found)) for name, found in _entries(kind)}


def offered(kind: Kind, name: str) -> bool:
    """Whether a name that is not built in is one that `load` knows, or of a file."""
    return (kind, name) in _given or is_file(name) or name in dict(_entries(kind))


def source(kind: Kind, name: str) -> Path | None:
    """The file in which a name from outside the package is defined, where that can be told without running it."""
    if is_file(name):
        return _parts(name)[0]
    found = dict(_entries(kind)).get(name, ())
    module = found[0][1].module if len(found) == 1 else ""
    first, _, rest = module.partition(".")
    spec = importlib.util.find_spec(first) if first else None  # to look further would import the package
    folders = spec.submodule_search_locations if spec else None
    if rest and folders:
        return Path(folders[0], *rest.split(".")).with_suffix(".py")
    return Path(spec.origin) if spec and spec.origin else None


def refuse_shadow(kind: Kind, name: str) -> None:
    """Raises InputError where a package offers a name that is built in: which of them is meant is not clear."""
    if name in names(kind):
        raise InputError(
            f"{SETTINGS[kind]}={name} is built in, and {names(kind)[name]} has the same name (entry points"
            f" {GROUPS[kind]}); give it another name there, or uninstall it"
        )


def near(kind: Kind, name: str, built_in: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing, of built-in names and those of packages."""
    if "/" in name or ":" in name:
        return "; what a file holds is named ./FILE.py:NAME"
    found = difflib.get_close_matches(name, [*built_in, *names(kind)], n=1)
    return f"; did you mean {found[0]}?" if found else ""


@contextlib.contextmanager
def given(kind: Kind, name: str, found: Any) -> Iterator[str]:
    """Within it the name is of an object that a caller holds, in this process alone."""
    _given[kind, name] = found
    try:
        yield name
    finally:
        del _given[kind, name]


# -------------------------------------------------------------------- loading


def load(kind: Kind, name: str, setting: str | None = None) -> Any:
    """What a name stands for that is not built in; `setting` has it, by default that of the kind.

    Raises InputError, one sentence: no such file, package or name in it, an error while it is imported, a name that two
    packages have.
    """
    said = f"{setting or SETTINGS[kind]}={name}"
    if (kind, name) in _given:
        return _given[kind, name]
    if is_file(name):
        return _of_file(kind, name, said)
    found = dict(_entries(kind)).get(name)
    if found is None:
        raise InputError(
            f"{said} is neither built in nor of an installed package (entry points {GROUPS[kind]})"
        )
    if len(found) > 1:
        several = " and ".join(sorted(package for package, _ in found))
        raise InputError(
            f"{said} is offered by {several}, and which is meant is not clear; uninstall one of them"
        )
    ((package, entry),) = found
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # whatever a package raises while it is imported
        raise InputError(f"{said} of {package} cannot be loaded: {told(error, name)}") from None
    packages[entry.dist.name] = entry.dist.version
    return loaded


@cache
def _known(group: str, path: tuple[str, ...]) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    """Name -> (package, entry point) of each package that offers it. `path`: where packages are looked for now."""
    from importlib.metadata import entry_points  # a tenth of a second, for names that are not built in

    found: dict[str, dict[str, Any]] = {}
    for entry in entry_points(group=group):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"
        if not _NAME.fullmatch(entry.name):
            raise InputError(
                f"{package} offers {entry.name!r} among the entry points {group}; a name is of letters, digits, _ and"
                " -, and begins with a letter"
            )
        found.setdefault(entry.name, {})[package] = entry
    return tuple((name, tuple(found[name].items())) for name in sorted(found))


def _entries(kind: Kind) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    return _known(GROUPS[kind], tuple(sys.path))


def _of_file(kind: Kind, name: str, said: str) -> Any:
    path, inside = _parts(name)
    module = _module(path, said)
    if inside is None:
        if kind == "protocol":
            return module
        example = next(iter(_own(module)), "NAME")
        raise InputError(f"{said} names a file alone; name what it holds too, {name}:{example}")
    found: Any = module
    for part in inside.split("."):
        if not part.isidentifier():
            raise InputError(f"{said}: {inside!r} is no name in Python; name what {path} holds, {path}:NAME")
        if not hasattr(found, part):
            own = _own(module)
            close = difflib.get_close_matches(inside, own, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(own) or 'nothing'}"
            raise InputError(f"{said}: {path} has no {inside}; {hint}")
        found = getattr(found, part)
    return found


def _parts(name: str) -> tuple[Path, str | None]:
    found = _FILE.fullmatch(name)
    assert found is not None
    return Path(absolute(found["path"])), found["inside"]


def _own(module: ModuleType) -> list[str]:
    """What a file itself defines for others."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _module(path: Path, said: str) -> ModuleType:
    """The module of a file, imported once for each text of it: as the recipe has it that was read last, or as it is."""
    name = f"{__name__}.file_{os.fsencode(path).hex()}_{_pins.get(str(path)) or digest(path, said)}"
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever it raises while it is run
        raise InputError(f"{said} cannot be loaded: {told(error, str(path))}") from None


def told(error: BaseException, name: str) -> str:
    """`FILE:LINE: KIND: MESSAGE` of an error in a plug-in: its own line where it is of a file, else the innermost."""
    found = _FILE.fullmatch(name)
    path = found and str(_parts(name)[0])
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    outer = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    own = [f for f in outer if f.filename == path]
    where = own or outer
    line = f"{where[-1].filename}:{where[-1].lineno}: " if where else ""
    message = first_line(error)
    kind = type(error).__name__
    return f"{line}{kind}: {message}" if message != kind else f"{line}{kind}"


# -------------------------------------------------------------------- files


def digest(path: Path, said: str) -> str:
    """SHA-256 of a file's text. Raises InputError, which begins with `said`."""
    try:
        return sha256(path)
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    raise InputError(f"{said}: {path}: {reason} on {socket.gethostname()}; {_SHARED}")


_SHARED = "every machine of a run reads it, so name a file on a disk that all of them have"


def pinned(used: Iterable[tuple[str, str]], known: Mapping[str, str]) -> dict[str, str]:
    """Path -> SHA-256 of the files among the (setting, name) that a recipe uses; `known`: what they were before.

    Raises InputError where one is not there, or holds another text than before.
    """
    found = {}
    for setting, name in used:
        if not is_file(name):
            continue
        path, _ = _parts(name)
        now, then = digest(path, f"{setting}={name}"), known.get(str(path))
        if then not in (None, now):
            raise InputError(
                f"{setting}={name}: {path} has changed since the run began (SHA-256 {str(then)[:12]} then, {now[:12]}"
                " now); put it back as it was, or give plugins= to judge or begin a run with it as it is"
            )
        found[str(path)] = now
    _pins.update(found)
    return found


def pins_of(name: str, known: Mapping[str, str]) -> dict[str, str]:
    """What `pinned` has found of the file that a name names; empty where it names none."""
    path = str(_parts(name)[0]) if is_file(name) else ""
    return {path: known[path]} if path in known else {}


class _FileLoader(Loader):
    """Runs the text of a file, if it is the one that the module's name says."""

    def __init__(self, path: Path, known: str) -> None:
        self.path, self.known = path, known

    def exec_module(self, module: ModuleType) -> None:
        text = self.path.read_bytes()
        if hashlib.sha256(text).hexdigest() != self.known:
            raise ImportError(f"{self.path} has changed since the run began; put it back as it was")
        exec(compile(text, str(self.path), "exec"), module.__dict__)


class _Files(MetaPathFinder):
    """Finds the modules of files, in any process: their names say all."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        found = _MODULE.fullmatch(name) if parent == __name__ else None
        if found is None:
            return None
        file = Path(os.fsdecode(bytes.fromhex(found["path"])))
        if not file.is_file():
            raise ImportError(f"{file} is not there on {socket.gethostname()}; {_SHARED}")
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_FileLoader(file, found["digest"])
        )


sys.meta_path.append(_Files())
