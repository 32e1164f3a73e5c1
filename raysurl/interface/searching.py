"""A sweep from Python: a published table, an open search, or a space of one's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from raysurl.commands.sweep import Asked, read_arguments
from raysurl.interface.results import html_table
from raysurl.interface.runs import TrainedRun, data_settings, plain_settings, plain_value, stoppable
from raysurl.paths import default_place, place
from raysurl.runtime import torch_as_it_starts
from raysurl.sweep import tables
from raysurl.sweep.plan import make_plan
from raysurl.sweep.report import write_report
from raysurl.sweep.results import Sweep, read_sweep
from raysurl.sweep.running import check_any_finished, run
from raysurl.train.run_directory import GIVEN


class SearchTable:
    """A sweep directory as a table: each cell with the mean and spread of its seeds, and the paper's number."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return tables.markdown(self._sweep)

    def _repr_html_(self) -> str:
        sweep = self._sweep
        said = "".join(f"<div>{escape(sentence)}</div>" for sentence in tables.findings(sweep))
        return f"<b>{escape(sweep.space.title)}</b>{html_table(*tables.grid(sweep))}{said}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A mapping per trial that has begun: its axes, seed, state, metrics, and `trial`, its id."""
        return [
            {
                "trial": name,
                **what["labels"],
                "seed": what["seed"],
                "state": outcome.state if outcome else "to run",
                **(outcome.metrics if outcome else {}),
            }
            for name, what, outcome in self._sweep.trials
        ]

    @property
    def best(self) -> TrainedRun | None:
        """A run of the best cell; None where no trial has come to a number."""
        found = self._sweep.best()
        return None if found is None else TrainedRun(self.directory / "trials" / found[0])

    @property
    def report(self) -> Path:
        """The page of the sweep."""
        return self.directory / "report.html"

    @property
    def _sweep(self) -> Sweep:
        return read_sweep(self.directory)


def search(
    space: str | os.PathLike[str] | Mapping[str, Any],
    data: Any = None,
    *,
    labels: Any = None,
    eval_data: Any = None,
    eval_labels: Any = None,
    scale: str | None = None,
    output: str | os.PathLike[str] | None = None,
    seeds: Sequence[int] | None = None,
    trials: int | None = None,
    max_trials: int | None = None,
    max_hours: float | None = None,
    max_concurrent: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    only: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> SearchTable:
    """Run a sweep under Ray Tune, as `raysurl sweep` does, and give its table; the same call goes on with one.

    `space`: one of the package by name, a YAML file, or what such a file holds, as a mapping with title, recipe and
    axes. `data`, …: as `pretrain` takes them, for every trial. `only`: of an axis these values alone. The others are
    those of the command. Raises InputError before anything starts, RunError where no trial finished, and
    KeyboardInterrupt, once what runs is saved, for Ctrl-C.
    """
    own = {
        "scale": scale,
        "seeds": seeds,
        "trials": trials,
        "max_trials": max_trials,
        "max_hours": max_hours,
        "max_concurrent": max_concurrent,
        "cpus": cpus,
        "gpus": gpus,
        **{
            f"only.{axis}": [values] if isinstance(values, str) else list(values)
            for axis, values in (only or {}).items()
        },
    }
    given = {key: plain_value(value) for key, value in own.items() if value is not None}
    given |= plain_settings(settings)
    with _file_of(space) as named:
        where = default_place("sweeps") / Path(named).stem if output is None else output
        directory = place("output", os.fspath(where))
        if output is not None or data is not None:  # else the command names it
            given["output"] = str(directory)
        given |= data_settings(data, labels, eval_data, eval_labels, given, directory / GIVEN)
        arguments = [
            f"space={named}",
            *(f"{k}={as_text(v)}" for k, v in given.items()),
        ]
        asked = read_arguments(arguments)
    return worked(asked)


def worked(asked: Asked) -> SearchTable:
    """The trials that have not ended are run, and the reports written."""
    again = f"the same raysurl.search(…, output={str(asked.output)!r})"
    with stoppable(again), torch_as_it_starts():
        plan = make_plan(asked.request)
        run(plan, asked.output, again, resources=asked.share, max_hours=asked.max_hours)
        write_report(asked.output)
        check_any_finished(plan, asked.output)
    return SearchTable(asked.output)


@contextlib.contextmanager
def _file_of(space: Any) -> Iterator[str]:
    """The space as a name or a file; a mapping is one for the time of the block."""
    if not isinstance(space, Mapping):
        yield os.fspath(space)
        return
    tree = plain_value(space)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{tree.get('name', 'search')}.yaml"
        path.write_text(yaml.safe_dump({"title": path.stem, **tree}, sort_keys=False), encoding="utf-8")
        yield str(path)


def as_text(value: Any) -> str:
    """A value as a person types it behind `key=`."""
    if value is None or isinstance(value, str):
        return value or ""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()
