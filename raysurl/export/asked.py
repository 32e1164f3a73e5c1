"""What is asked of an export, checked before anything is imported for it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from raysurl.errors import InputError
from raysurl.paths import place, writable
from raysurl.recipe import nearest

TARGETS = {  # -> what stands in the folder afterwards
    "onnx": "encoder.onnx",
    "torchscript": "encoder.torchscript.pt",
    "torch.export": "encoder.pt2",
    "timm": "timm",
    "huggingface": "huggingface",
}
GRAPHS = ("onnx", "torchscript", "torch.export")  # what has the network's operations in it, and no code
NEEDS = {"onnx": ("onnxscript", "onnxruntime"), "timm": ("timm",)}
EXTRA = "pip install 'raysurl[export]'"
Takes = Literal["views", "pixels"]
TAKES = ("views", "pixels")


@dataclass(frozen=True)
class AskedForms:
    """`takes`: what the graphs are given, normalised views or pixels in [0, 1]. `license`: of the model card."""

    targets: tuple[str, ...]
    folder: Path
    takes: Takes = "views"
    license: str | None = None


def asked_for(
    to: str | Iterable[str], folder: str, takes: str = "views", license: str | None = None
) -> AskedForms:
    """`to`: one target or several, also `a,b` and `[a, b]`. Raises InputError for what cannot be, or not here."""
    targets = _targets(to)
    if takes not in TAKES:
        raise InputError(f"takes={takes} is not known; {nearest(str(takes), TAKES, 'choose one of')}")
    if takes == "pixels" and not set(targets) & set(GRAPHS):
        raise InputError(
            f"takes=pixels builds the normalisation into {', '.join(GRAPHS)}; {' and '.join(targets)} state it in"
            " config.json, so leave takes= out"
        )
    if license and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,60}", license):
        raise InputError(
            f"license={license} is not a licence's short name; give one as Hugging Face lists them, as apache-2.0"
        )
    for target in targets:
        check_installed(target, NEEDS.get(target, ()))
    return AskedForms(targets, _new_folder(folder), cast(Takes, takes), license.lower() if license else None)


def check_installed(target: str, packages: Iterable[str]) -> None:
    """Raises InputError, which names the extra, where one of these packages is not there."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(f"to={target} needs {' and '.join(absent)}: {EXTRA}")


def _targets(to: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(to, str | Iterable):
        raise InputError(f"to={to!r} names no target; choose among {', '.join(TARGETS)}")
    names = to.strip().removeprefix("[").removesuffix("]").split(",") if isinstance(to, str) else list(to)
    names = [str(name).strip().strip("'\"") for name in names]
    if not any(names):
        raise InputError(f"name what to export to: to={'|'.join(TARGETS)}, or several with commas")
    for name in names:
        if name not in TARGETS:
            raise InputError(f"to={name} is not known; {nearest(name, TARGETS, 'choose one of')}")
    return tuple(dict.fromkeys(names))


def _new_folder(given: str) -> Path:
    """Where it goes, not there yet or empty. Raises InputError for anything else, and where nothing can be written."""
    if not given:
        raise InputError("name the folder to write: output=FOLDER")
    folder = place("output", given)
    if os.path.lexists(folder) and not (folder.is_dir() and not folder.is_symlink()):
        raise InputError(f"output={folder} is no folder; name another")
    try:
        taken = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"output={folder} cannot be read ({error.strerror}); name another folder") from None
    if taken:
        raise InputError(f"output={folder} holds {taken[0]} already; name a new folder")
    return writable("output", folder)
