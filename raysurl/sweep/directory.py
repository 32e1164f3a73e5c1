"""The sweep directory: which sweep it holds, its trials, and what a report needs to know of the plan.

sweep.json      the space at its scale, its cells with their trials, the paper's numbers, what is not run and why
trials/ID/      one run directory each, with cell.json (its labels) and, once it has ended, trial.json (its outcome)
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysurl import plain
from raysurl.errors import InputError
from raysurl.recipe.schema import sentence
from raysurl.sweep.cells import Trial
from raysurl.sweep.forms import StoredSweep, StoredTrial
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.plan import SweepPlan
from raysurl.sweep.search import PastTrial
from raysurl.sweep.trial import FINAL, Outcome, read_outcome, write_outcome
from raysurl.train import lock
from raysurl.train.run_directory import NOTHING, commit, is_taken, refusing, write_atomic

# What may differ when a sweep is continued: more seeds or trials may be asked for, and words may be corrected.
FREE = {
    *("title", "seeds", "trials", "max_trials", "band", "says", "paper", "columns", "shown", "group", "cpu"),
    *("photographs", "measures", "claims"),
}
FILE = "sweep.json"


@contextlib.contextmanager
def claim(directory: Path, plan: SweepPlan) -> Iterator[None]:
    """Make the directory, or check that it holds this sweep, and hold it; the plan is written down.

    Raises InputError, also where another process works in it.
    """
    with refusing(directory):
        _described(directory, plan)
        (directory / "trials").mkdir(parents=True, exist_ok=True)
    with lock.working_in(directory, named=f"output={directory}"):
        with refusing(directory):
            write_atomic(directory / FILE, json.dumps(_described(directory, plan), indent=1))
        yield


def _described(directory: Path, plan: SweepPlan) -> dict[str, Any]:
    """What is to be written down, with what earlier starts have. Raises InputError where something else is there."""
    described = describe(plan)
    if (directory / FILE).is_file():
        stored = read(directory)
        if stored["identity"] != described["identity"]:
            raise InputError(
                f"output={directory} holds another sweep: {_difference(stored, described)}; name another directory"
            )
        described["cells"] = _merged(stored["cells"], described["cells"])
        described["starts"] = [*stored["starts"], *described["starts"]]
    elif is_taken(directory) and not _begun_to_be_made(directory):
        raise InputError(f"output={directory} is not empty and holds no sweep; name another directory")
    return described


def _begun_to_be_made(directory: Path) -> bool:
    """Whether there is nothing but what `claim` itself makes first: another start may be at it."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else {""}
    return names <= {*NOTHING, "trials"} and not any((directory / "trials").iterdir())


def read(directory: Path) -> dict[str, Any]:
    """What `claim` has written. Raises InputError where that is no sweep."""
    try:
        found = plain.read_mapping(directory / FILE)
    except (OSError, ValueError):
        raise InputError(f"sweep={directory} is not a sweep directory: it has no readable {FILE}") from None
    try:
        StoredSweep.model_validate(found)
    except ValidationError as error:
        raise InputError(
            f"sweep={directory}: its {FILE} is not what a sweep writes ({sentence(error, StoredSweep)[:200]}); run the"
            " sweep in a new directory"
        ) from None
    return found


def describe(plan: SweepPlan) -> dict[str, Any]:
    published, at_scale = (s.model_dump(mode="json") for s in (plan.request.space, plan.space))
    identity = {
        "scale": plan.request.scale,
        "overrides": dict(plan.request.overrides or {}),
        "space": {k: v for k, v in at_scale.items() if k not in FREE},
    }
    paper = paper_numbers(plan.request.space)
    ran = {key: {"labels": list(key), "ids": list(ids)} for key, ids in plan.ids.items()}
    left = {key: {"labels": list(key), "ids": [], "why": why} for key, why in plan.not_run.items()}
    return {
        "identity": json.loads(json.dumps(identity)),
        "space": at_scale,
        "published": published,
        "stands_in": plan.request.space.stands_in(plan.request.scale),
        "cells": list({**ran, **left}.values()),
        "paper": [{"labels": list(key), "value": value} for key, value in paper.items()],
        "starts": [{"time": time.time(), "commit": commit()}],
    }


def _merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of an earlier start stay in the table; of a cell in both, a seed counts once, as asked for last."""
    found = {tuple(cell["labels"]): cell for cell in before}
    for cell in now:
        key = tuple(cell["labels"])
        ids = [*found.get(key, {}).get("ids", []), *cell["ids"]]
        found[key] = {**cell, "ids": list({name.rpartition("-")[2]: name for name in ids}.values())}
    return list(found.values())


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    a, b = stored["identity"], now["identity"]
    if a["space"]["name"] != b["space"]["name"]:
        return f"space={a['space']['name']}, not {b['space']['name']}"
    if a["scale"] != b["scale"]:
        return f"scale={a['scale']}, not {b['scale']}"
    if a["overrides"] != b["overrides"]:
        return f"it was started with {a['overrides'] or 'no recipe settings'}, not {b['overrides'] or 'none'}"
    changed = [k for k in b["space"] if a["space"].get(k) != b["space"][k]]
    return f"space {b['space']['name']} has since changed its {', '.join(changed)}"


# -------------------------------------------------------------------- trials


def trial_directory(directory: Path, trial: Trial) -> Path:
    return directory / "trials" / trial.id


def remember(directory: Path, trial: Trial, values: Mapping[str, Any] | None = None) -> None:
    """Write what the trial is, before it starts. `values`: as an open search sampled them."""
    where = trial_directory(directory, trial)
    where.mkdir(parents=True, exist_ok=True)
    what = {"labels": dict(trial.cell.labels), "seed": trial.seed, "values": dict(values or {})}
    write_atomic(where / "cell.json", json.dumps(what))


def remember_once(directory: Path, trial: Trial) -> None:
    if not (trial_directory(directory, trial) / "cell.json").is_file():
        remember(directory, trial)


def ended(directory: Path, trial: Trial, ending: Outcome) -> Outcome:
    """The outcome that the trial itself wrote, else `ending`, written for it: it was ended from outside."""
    where = trial_directory(directory, trial)
    outcome = read_outcome(where)
    if outcome is None:
        where.mkdir(parents=True, exist_ok=True)
        write_outcome(where, outcome := ending)
    return outcome


def is_open(directory: Path, trial: Trial) -> bool:
    """Whether the trial has no outcome yet."""
    return read_outcome(trial_directory(directory, trial)) is None


def remaining(directory: Path, plan: SweepPlan) -> list[Trial]:
    """The trials of a grid that have not ended; those that began before come first."""
    left = []
    for trial in plan.trials:
        outcome = read_outcome(trial_directory(directory, trial))
        if outcome is None or outcome.state not in FINAL:
            left.append(trial)
    return sorted(left, key=lambda trial: not trial_directory(directory, trial).exists())


def known(directory: Path) -> list[PastTrial]:
    """Trials of earlier starts of an open search, in the order in which they began."""
    found = []
    for path in _begun(directory):
        outcome = read_outcome(path.parent)
        final = outcome if outcome and outcome.state in FINAL else None
        found.append(PastTrial(_cell(path)["values"], final))
    return found


def outcomes(directory: Path) -> Iterator[tuple[str, dict[str, Any], Outcome | None]]:
    """Id, cell.json and outcome of every trial that has begun, in the order in which they did."""
    for path in _begun(directory):
        yield path.parent.name, _cell(path), read_outcome(path.parent)


def _cell(path: Path) -> dict[str, Any]:
    """What `remember` has written. Raises InputError where that has been damaged."""
    try:
        found = plain.read_mapping(path)
        StoredTrial.model_validate(found)
    except (OSError, ValueError):  # pydantic's is one
        raise InputError(
            f"{path} is damaged; remove {path.parent} and run the sweep again, which runs that trial anew"
        ) from None
    return found


def _begun(directory: Path) -> list[Path]:
    return sorted((directory / "trials").glob("*/cell.json"), key=lambda path: path.stat().st_mtime_ns)
