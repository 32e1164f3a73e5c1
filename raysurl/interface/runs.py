"""A run from Python: `pretrain` does what the command does, and gives a run whose parts can be asked for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysurl import metrics, plain, stopping
from raysurl import run as runs
from raysurl.commands.evaluate import evaluated
from raysurl.data import manifest
from raysurl.encoder import encoder_of, load_encoder, write_encoder
from raysurl.errors import InputError
from raysurl.interface import writing
from raysurl.interface.callbacks import Callback, Callbacks, heard
from raysurl.interface.images import located
from raysurl.interface.models import TrainedModel, chosen_device, load
from raysurl.interface.results import MetricsTable
from raysurl.paths import given_path, place
from raysurl.recipe import Recipe, continued, read_stored, recipe_from, recipe_of
from raysurl.report import write_report
from raysurl.report.progress import watching
from raysurl.runtime import torch_as_it_starts
from raysurl.train import checkpoint
from raysurl.train.run_directory import GIVEN, commit, default_directory, is_taken


class TrainedRun:
    """A run directory, finished or not. `directory`: where it is. Raises InputError for one that holds no run."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = given_path("run", os.fspath(directory)).absolute()
        if not (self.directory / "recipe.yaml").is_file():
            raise InputError(f"run={directory} is no run directory: it has no recipe.yaml")

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"<{state} run in {self.directory}>\n{self.results!r}"

    def _repr_html_(self) -> str:
        return self.results._repr_html_()

    @property
    def finished(self) -> bool:
        return (self.directory / "results.json").is_file()

    @property
    def recipe(self) -> Recipe:
        """As the run was resolved."""
        return recipe_from(read_stored(self.directory))

    @property
    def results(self) -> MetricsTable:
        """The final metrics by name; of an unfinished run the latest of each."""
        if self.finished:
            found = plain.read_mapping(self.directory / "results.json")
            title = f"{self.directory.name}: {found['seconds']:.0f} s"
            return MetricsTable(title, found["metrics"], found.get("intervals"), found.get("gains"))
        latest: dict[str, float] = {}
        for line in self.history:
            latest |= {k: v for k, v in line.items() if k.startswith(("train/loss", "eval/", "health/"))}
        return MetricsTable(f"{self.directory.name}: unfinished", latest)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: steps, evaluations and events, in order."""
        return metrics.read(self.directory / "metrics.jsonl")

    @property
    def report(self) -> Path:
        """The page of the run, which opens offline; written where it is not there yet."""
        page = self.directory / "report.html"
        return page if page.is_file() else write_report(self.directory)

    @property
    def model(self) -> TrainedModel:
        """The trained encoder, `raysurl.load(run.directory)`."""
        return load(self.directory)

    def evaluate(
        self,
        protocols: list[str] | None = None,
        *,
        data: Any = None,
        labels: Any = None,
        eval_data: Any = None,
        eval_labels: Any = None,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> MetricsTable:
        """Judge the encoder as pipelines/evaluate.py does, by default on the data of the run.

        `protocols`: of `eval.protocols`, by default the recipe's. `data`, `labels`, …: as `pretrain` takes them.
        Writes evaluation.json, and after `finetune` the classifier. Raises InputError.
        """
        given = plain_settings(settings)
        if protocols is not None:
            given["eval.protocols"] = [protocols] if isinstance(protocols, str) else list(protocols)
        with tempfile.TemporaryDirectory() as folder, torch_as_it_starts():
            given |= data_settings(data, labels, eval_data, eval_labels, given, Path(folder))
            found = load_encoder(str(self.directory), given)
            asked = found.recipe.eval.protocols if "eval.protocols" in given else ()
            written, said = evaluated(found, chosen_device(device), asked)
        name = self.directory.name
        return MetricsTable(name, written["metrics"], written["intervals"], written["gains"], said)


def pretrain(
    recipe: str | os.PathLike[str] | None = None,
    data: Any = None,
    *,
    labels: Any = None,
    eval_data: Any = None,
    eval_labels: Any = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    runtime: str | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_step: Callback | None = None,
    on_epoch: Callback | None = None,
    on_evaluation: Callback | None = None,
    progress: bool = True,
) -> TrainedRun:
    """Train and evaluate as a recipe says; what `raysurl pretrain` does, with the same settings and results.

    `recipe`: a packaged one by name, or a YAML file. `data`, `eval_data`: images (N,H,W,C), (N,C,H,W) or (N,H,W) of
    bytes or of floats in 0…1, a list of PIL images, arrays or file names, a torch Dataset (read once, in order), a
    folder, Parquet or NumPy file, or the name of a data set. `labels`, `eval_labels` (N,): numbers or text, for the
    evaluation alone. `settings`: any other setting of the recipe, {"train.optimizer.lr": 0.1}.

    What is only in memory is written into the run directory, so that any worker, a resumed run and evaluations read
    it. `resume=True` goes on with the run in `output`; its data need not be given again.

    A callback is called with a dictionary: `on_step` with a line of metrics.jsonl (in blocks of log.every_steps steps),
    `on_epoch` with epoch, epochs, step and the mean train/loss, `on_evaluation` with the metrics. It stops the run by
    raising StopRun or returning True; the run is saved, its model can be used, and `resume=True` goes on. Under
    runtime="ray" callbacks are called in a thread of their own a moment after the step, and so is the run stopped.

    Raises InputError before anything is trained, RunError for a run that failed, and KeyboardInterrupt, once the run
    is saved, for Ctrl-C.
    """
    short = {"recipe": recipe, "train.epochs": epochs, "train.batch_size": batch_size, "seed": seed}
    given = plain_settings(settings, {**short, "runtime": runtime, "output": output})
    directory = _directory(given, resume=resume, data=data)
    before = set((directory / GIVEN).glob("*"))
    try:
        given |= {"output": str(directory)}
        given |= data_settings(data, labels, eval_data, eval_labels, given, directory / GIVEN)
        found = continued({**given, "resume": True}) if resume else recipe_of(given)
        callbacks = Callbacks(found.total_epochs, on_step, on_epoch, on_evaluation)
        return worked(found, directory, callbacks, shown=progress)
    except InputError:
        if resume or not (directory / "recipe.yaml").exists():
            writing.cleared(directory / GIVEN, keep=before)
        raise


def _directory(given: Mapping[str, Any], *, resume: bool, data: Any) -> Path:
    """The run directory, of which nothing is written yet. Raises InputError for one that cannot be begun or resumed."""
    if resume:
        continued({key: given[key] for key in ("output", "recipe") if key in given})
    if not given.get("output"):
        return default_directory(recipe_of(given if data is None else {**given, "data.name": "python"}))
    directory = place("output", str(given["output"]))
    if not resume and is_taken(directory):
        raise InputError(
            f"output={directory} is not empty; continue that run with resume=True or name another directory"
        )
    return directory


def worked(recipe: Recipe, directory: Path, callbacks: Callbacks, *, shown: bool) -> TrainedRun:
    """The run done, or stopped by one of the callbacks, whose own error is raised once it is saved."""

    @contextlib.contextmanager
    def watch(run_dir: Path) -> Iterator[None]:
        display = watching(run_dir) if shown else contextlib.nullcontext()
        with display, heard(callbacks, run_dir, recipe.runtime):
            yield

    try:
        with stoppable(f"raysurl.pretrain(output={str(directory)!r}, resume=True)"), torch_as_it_starts():
            runs.pretrain(recipe, watch)
    except stopping.StoppedError as stop:
        if not callbacks.stopped:
            if not (directory / "recipe.yaml").exists():
                stop.how = "nothing was trained, call it again"
            raise
        write_stopped(directory)
    if callbacks.error:
        raise callbacks.error
    return TrainedRun(directory)


def write_stopped(directory: Path) -> None:
    """The encoder of a run that was stopped, from its newest checkpoint: it can be used as it stands."""
    recipe = recipe_from(read_stored(directory))
    state, _ = checkpoint.load_newest(directory / "checkpoints", method=recipe.method.name)
    if state is None:
        return
    prefix = "encoder."
    encoder = encoder_of(recipe)
    encoder.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state["model"].items() if key.startswith(prefix)}
    )
    depth = manifest.depth_of(directory / "manifest.parquet")
    write_encoder(directory, encoder, recipe, depth, commit=commit())


# -------------------------------------------------------------------- settings


def data_settings(
    data: Any, labels: Any, eval_data: Any, eval_labels: Any, given: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The settings of data that are given as values; what is only in memory is written into `folder`."""
    for mine, others, name in ((data, labels, ""), (eval_data, eval_labels, "eval_")):
        if mine is None and others is not None:
            raise InputError(f"{name}labels= needs {name}data=, the images that they are of")
    if data is None and eval_data is None:
        return {}
    if data is None:
        raise InputError("eval_data= needs data=, the images to train on")
    place_too = "data.path" in (
        located(data) or {"data.path": ""}
    )  # data sets that are named lie in a data.path
    if twice := [key for key in ("data", *(["data.path"] if place_too else [])) if key in given]:
        raise InputError(f"data= and the setting {twice[0]} both name the data; leave one out")
    found = writing.written(data, labels, folder, "train")
    if "data.name" in given:  # what the path holds is said, and not guessed
        found["data.name"] = given["data.name"]
    if eval_data is None:
        return {"data.eval_path": None, **found} if "data.eval_path" not in given else found
    test = writing.written(eval_data, eval_labels, folder, "eval")
    if test["data.name"] != found["data.name"]:
        raise InputError(
            f"data= is read as {found['data.name']} and eval_data= as {test['data.name']}; give both in one form"
        )
    return {**found, "data.eval_path": test["data.path"]}


def plain_settings(
    settings: Mapping[str, Any] | None, short: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings by dotted key, and those that are given as arguments (`short`; None: not given), as a file holds them.

    Raises InputError for what is no mapping of names, and for what is given twice.
    """
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) and key for key in settings):
        raise InputError('settings= is a mapping of recipe keys to values, for example {"train.epochs": 20}')
    if "resume" in settings:
        raise InputError("settings= holds resume; give resume=True beside output=")
    said = {key: value for key, value in (short or {}).items() if value is not None}
    if twice := [key for key in said if key in settings]:
        raise InputError(f"{twice[0]} is given twice, as an argument and in settings; leave one out")
    return {key: plain_value(value) for key, value in {**settings, **said}.items()}


def plain_value(value: Any) -> Any:
    """NumPy's numbers, paths and tuples as YAML has them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_value(inner) for inner in value]
    return value


# -------------------------------------------------------------------- around the work


@contextlib.contextmanager
def stoppable(again: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM in this block come as StoppedError, a KeyboardInterrupt, once what runs is saved.

    Handlers are those from before again at its end. `again`: the call that goes on.
    """
    with stopping.signals():
        try:
            yield
        except stopping.StoppedError as stop:
            stop.how = f"what is done is kept, continue with: {again}"
            raise
        except Exception:
            if signum := stopping.came():  # a library's error in a signal's way
                raise stopping.StoppedError(signum, f"continue with: {again}") from None
            raise
