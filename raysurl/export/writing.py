"""The files of an export: checked, written beside their place, compared with the original, and then put there whole."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysurl import plain
from raysurl.data.depth import Depth
from raysurl.encoder import NAME, described, encoder_of, input_shape, origin, stored_about
from raysurl.errors import InputError, RunError, storage_error, unwritable
from raysurl.export import huggingface
from raysurl.export.asked import GRAPHS, TARGETS, AskedForms, check_installed
from raysurl.export.card import card
from raysurl.export.checking import Apply, difference
from raysurl.export.graphs import WRITE, Pixels
from raysurl.export.timm_form import TimmForm, known_form, spoken, timm_form
from raysurl.nets.encoders import built_in
from raysurl.recipe import Recipe

SPARE = 1 << 22  # bytes of a file that are no weights, generously


@dataclass(frozen=True)
class Written:
    """`path`: a file or folder. `difference`: the largest between an output and the original's. `read`: how to."""

    target: str
    path: Path
    difference: float
    read: str


@dataclass(frozen=True)
class _Work:
    """`network`: on the CPU, with torch's own batch norm. `form`: where timm's model is needed and there is one."""

    asked: AskedForms
    recipe: Recipe
    network: nn.Module
    about: Mapping[str, Any]
    form: TimmForm | None
    card: str


def write(
    run: Path, recipe: Recipe, encoder: nn.Module, depth: Depth | None, asked: AskedForms
) -> list[Written]:
    """The encoder of `run` (a directory or a file) in the forms that are asked for, all of them or none.

    Raises InputError before anything is written, RunError where a form does not compute what the encoder does, and
    StorageError where the disk fills meanwhile.
    """
    work = _prepared(run, recipe, encoder, depth, asked)
    with _staged(asked.folder) as staging:
        return [_written(work, target, staging) for target in asked.targets]


def _prepared(run: Path, recipe: Recipe, encoder: nn.Module, depth: Depth | None, asked: AskedForms) -> _Work:
    """Raises InputError for what cannot be exported so, or finds no room."""
    vectors = len(input_shape(recipe)) == 1
    if vectors and asked.takes == "pixels":
        raise InputError(f"takes=pixels is of images, and {spoken(recipe)} sees vectors here; leave it out")
    if "huggingface" in asked.targets and not built_in(recipe.encoder.name):
        raise InputError(
            f"to=huggingface: {spoken(recipe)} is not of this package, whose code is written beside the weights;"
            " export to onnx, torchscript or torch.export"
        )
    network = _on_cpu(recipe, encoder)
    form = None
    if "timm" in asked.targets or ("huggingface" in asked.targets and known_form(recipe)):
        check_installed("huggingface" if "timm" not in asked.targets else "timm", ["timm"])
        form = timm_form(recipe, network)
    needed = len(asked.targets) * (_bytes(network) + SPARE)
    above = next(folder for folder in asked.folder.parents if folder.is_dir())
    if (free := shutil.disk_usage(above).free) < needed:
        raise InputError(
            f"output={asked.folder} needs about {needed >> 20} MB and {above} has {free >> 20} MB left; name a folder"
            " on another disk"
        )
    about, results = _facts(run, recipe, network, depth)
    title = (run if run.is_dir() else run.parent).name or recipe.encoder.name
    try:
        text = card(title, about, results, form, asked.license)
    # of files that a person, or a fault, has changed
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"run={run} has results or a description that cannot be read") from None
    return _Work(asked, recipe, network, about, form, text)


def _on_cpu(recipe: Recipe, encoder: nn.Module) -> nn.Module:
    network = encoder_of(recipe.model_copy(update={"norm": "local"}))
    network.load_state_dict({key: value.detach().cpu() for key, value in encoder.state_dict().items()})
    return network.eval().requires_grad_(False)


def _bytes(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def _facts(
    run: Path, recipe: Recipe, network: nn.Module, depth: Depth | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is known of the encoder, and the results of the run; None of a file alone, and of an unfinished run."""
    about = described(recipe, network, depth)
    results = None
    if run.is_dir():
        # of which version of this program the encoder itself says, if it was one that did
        about = origin(recipe, None) | about | {"version": None}
        if (run / "results.json").is_file():
            try:
                results = plain.read_mapping(run / "results.json")
            except (OSError, ValueError):
                raise InputError(
                    f"{run / 'results.json'} cannot be read; move it away to export without"
                ) from None
    file = run / NAME if run.is_dir() else run
    if file.is_file():  # of a classifier's, which was fine-tuned since, nothing is said
        about = about | stored_about(file) | described(recipe, network, depth)
    return about, results


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which then stands there; an error leaves nothing."""
    staging = folder.with_name(f".{folder.name[:50]}.{os.getpid()}.partial")
    above = next(place for place in folder.parents if os.path.lexists(place))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        os.replace(staging, folder)
    except BaseException as error:
        said = _of_the_disk(error, staging)
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(folder.parent, above)
        if said is not None:
            raise said from None
        raise


def _of_the_disk(error: BaseException, staging: Path) -> Exception | None:
    """What writers of several libraries mean where a disk is full."""
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    if isinstance(error, RunError):
        return None
    return storage_error(error, staging) or (unwritable(staging) if staging.is_dir() else None)


def _remove_empty(folder: Path, above: Path) -> None:
    """The folders that were made for this one."""
    while folder != above and folder.is_relative_to(above):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


# -------------------------------------------------------------------- one target


def _written(work: _Work, target: str, staging: Path) -> Written:
    place, path = staging / TARGETS[target], work.asked.folder / TARGETS[target]
    shape, pixels = input_shape(work.recipe), work.asked.takes == "pixels" and target in GRAPHS
    network = work.network
    if pixels:
        network = Pixels(copy.deepcopy(network), work.recipe.views.mean, work.recipe.views.std).eval()
    span = (0.0, 1.0) if pixels else (-2.0, 2.0)
    if target in GRAPHS:
        about = {**work.about, "takes": work.asked.takes if len(shape) == 3 else "vectors"}
        apply: Apply = WRITE[target](network, torch.zeros(2, *shape), place, about)
        read = {"onnx": "onnxruntime.InferenceSession({0})", "torchscript": "torch.jit.load({0})"}.get(
            target, "torch.export.load({0}).module()"
        )
    elif work.form is not None:
        apply = huggingface.write_timm(place, work.form, work.about)
        weights = f'"{path / huggingface.WEIGHTS}"'
        read = work.form.call(f'"{work.form.name}"', f"checkpoint_path={weights}")
    else:
        apply = huggingface.write_plain(place, network, work.recipe, work.about)
        read = "modeling.load({0}), of the modeling.py in it"
    if target == "huggingface":
        (place / huggingface.CARD).write_text(work.card, encoding="utf-8")
    off = difference(target, network, apply, shape, span)
    return Written(target, path, off, read.format(f'"{path}"'))
