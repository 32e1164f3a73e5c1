"""Whatever a run or sweep directory holds by now: it is read, passed over, or refused in one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from fuzzing import CHANGES, CUT, FLIPS, Change, Flips, changed, damaged, is_one_sentence
from hypothesis import strategies as st
from places import made_once
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import SETTINGS, finished_run

from raysurl.classifier import load_classifier
from raysurl.commands.results import add, add_sweep, table
from raysurl.encoder import load_encoder
from raysurl.errors import InputError, RunError
from raysurl.recipe import dump, load_recipe
from raysurl.report import write_report
from raysurl.runtime import LocalRuntime
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.report import write_report as write_sweep_report
from raysurl.sweep.space import space_from
from raysurl.sweep.trial import Outcome, write_outcome
from raysurl.train import checkpoint, local, trainer

# -------------------------------------------------------------------- checkpoints


class CheckpointCase(NamedTuple):
    """`changes` of the state's tree, or of the manifest's; else flips of the state's bytes, `signed` anew or not."""

    in_manifest: bool
    changes: list[Change] | None
    signed: bool
    flips: Flips
    cut: int | None


CHECKPOINTS = st.builds(
    CheckpointCase,
    in_manifest=st.booleans(),
    changes=st.one_of(st.none(), CHANGES, CHANGES),
    signed=st.booleans(),
    flips=FLIPS,
    cut=CUT,
)


def check_checkpoint(case: CheckpointCase) -> None:
    """A run of which only this checkpoint is left goes on from it, begins anew, or says what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        shutil.copytree(finished_run(), run_dir)
        newest, *older = sorted((run_dir / "checkpoints").iterdir(), reverse=True)
        for path in older:
            shutil.rmtree(path)
        state, about = newest / "state.pt", newest / "manifest.json"
        if case.changes is None:
            state.write_bytes(damaged(state.read_bytes(), case.flips, case.cut))
        elif case.in_manifest:
            about.write_text(json.dumps(changed(json.loads(about.read_text()), case.changes)))
        else:
            torch.save(changed(torch.load(state, weights_only=True), case.changes), state)
        if case.signed and not case.in_manifest:
            content = state.read_bytes()
            signed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            about.write_text(json.dumps({**json.loads(about.read_text()), **signed}))
        recipe = load_recipe([*SETTINGS, f"output={run_dir}"])
        checkpoint.prune(newest.parent, keep=3)
        try:
            run = trainer.start(recipe, LocalRuntime(torch.device("cpu")), _source(), None, run_dir)
            assert run.step >= 0
            trainer.after_epoch(run, epochs_done=recipe.total_epochs)
        except (InputError, RunError) as error:
            is_one_sentence(error)


@cache
def _source() -> Any:
    from raysurl.data.names import open_samples

    recipe = load_recipe(SETTINGS)
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    assert samples is not None
    return local.open_sources(recipe, samples, None)[0]


# -------------------------------------------------------------------- run directories

RUN_FILES = (
    "recipe.yaml",
    "results.json",
    "metrics.jsonl",
    "manifest.parquet",
    "encoder.safetensors",
    "classifier-full.safetensors",
    "samples/views.npz",
    "samples/neighbours.npz",
    "samples/confusion.npz",
)


class StoredCase(NamedTuple):
    file: str
    changes: list[Change] | None  # of its tree, where it has one
    flips: Flips
    cut: int | None


def stored_cases(files: tuple[str, ...]) -> st.SearchStrategy[StoredCase]:
    """Damages to one of `files`."""
    changes = st.one_of(st.none(), CHANGES, CHANGES)
    return st.builds(StoredCase, file=st.sampled_from(files), changes=changes, flips=FLIPS, cut=CUT)


RUNS = stored_cases(RUN_FILES)


def _change(path: Path, case: StoredCase) -> None:
    """A file damaged in its tree, if it is one of those that hold one; else in its bytes."""
    if case.changes is not None and path.suffix in (".yaml", ".json"):
        is_json = path.suffix == ".json"
        tree = changed(
            json.loads(path.read_text()) if is_json else yaml.safe_load(path.read_text()), case.changes
        )
        text = json.dumps(tree) if is_json else yaml.safe_dump(tree)
        path.write_bytes(text.encode(errors="surrogatepass"))
    elif case.changes is not None and path.suffix == ".jsonl":
        lines = changed([json.loads(line) for line in path.read_text().splitlines()], case.changes)
        path.write_text(
            "".join(f"{json.dumps(line)}\n" for line in (lines if isinstance(lines, list) else [lines]))
        )
    elif case.changes is not None and path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = {key: _json_or_text(text) for key, text in file.metadata().items()}
        about = changed(about, case.changes)
        if isinstance(about, dict):
            texts = {str(key): json.dumps(value) for key, value in about.items()}
            with contextlib.suppress(UnicodeEncodeError):
                save_file(load_file(path), path, metadata=texts)
    else:
        path.write_bytes(damaged(path.read_bytes(), case.flips, case.cut))


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_run(case: StoredCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir, results = Path(folder) / "run", Path(folder) / "results"
        shutil.copytree(finished_run(), run_dir, ignore=shutil.ignore_patterns("checkpoints"))
        _change(run_dir / case.file, case)
        for read in (
            lambda: write_report(run_dir),
            lambda: load_encoder(str(run_dir)),
            lambda: load_encoder(str(run_dir / "encoder.safetensors")),
            lambda: load_classifier(str(run_dir / "classifier-full.safetensors")),
            lambda: (add(run_dir, "x", results), table(results)),
        ):
            try:
                read()
            except (InputError, RunError) as error:
                is_one_sentence(error)


# -------------------------------------------------------------------- sweep directories

SPACE = {
    "name": "small",
    "title": "A small table",
    "recipe": "ressl/digits",
    "axes": {"method.tau_student": [0.1, 0.2]},
    "seeds": [0, 1],
    "objectives": {"eval/knn_top1": "max"},
    "paper": [90.0, 88.0],
}
SWEEP_FILES = ("sweep.json", "trial.json", "cell.json", "recipe.yaml")


SWEEPS = stored_cases(SWEEP_FILES)


@cache
def finished_sweep() -> Path:
    where = made_once("fuzz") / "sweep"
    plan = make_plan(SweepRequest(space_from(SPACE), "full"))
    with sweep_directory.claim(where, plan):
        for i, trial in enumerate(plan.trials):
            sweep_directory.remember(where, trial)
            there = sweep_directory.trial_directory(where, trial)
            (there / "recipe.yaml").write_text(dump(trial.recipe))
            shutil.copy(finished_run() / "results.json", there)
            write_outcome(there, Outcome("finished", "", {"eval/knn_top1": 90.0 + i}, 2.0, 0.1, 5))
    return where


def check_sweep(case: StoredCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where, results = Path(folder) / "sweep", Path(folder) / "results"
        shutil.copytree(finished_sweep(), where)
        there = next((where / "trials").iterdir())
        _change(where / case.file if case.file == "sweep.json" else there / case.file, case)
        plan = make_plan(SweepRequest(space_from(SPACE), "full"))
        for read in (
            lambda: write_sweep_report(where),
            lambda: (add_sweep(where, "x", results), table(results)),
            lambda: sweep_directory.remaining(where, plan),
            lambda: list(sweep_directory.outcomes(where)),
            lambda: _claimed(where, plan),
        ):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    read()
            except (InputError, RunError) as error:
                is_one_sentence(error)


def _claimed(where: Path, plan: Any) -> None:
    with sweep_directory.claim(where, plan):
        pass
