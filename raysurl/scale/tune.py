"""Trials on Ray Tune: which process runs which trial; what a trial does is raysurl.sweep.trial.

A trial of one process trains in Tune's own. One of several workers leaves CPUs and GPUs to them: its process holds a
byte of memory, because Tune must be asked for something, and raysurl.scale.share bounds how many run at once.

Tune starts trials, bounds how many run at once, uses their processes again and starts one again whose process died.
What has been done stands in the sweep directory, not in Tune's: a new start reads it there, so Tune's own experiment
state is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from raysurl import stopping
from raysurl.data.names import Samples
from raysurl.data.residency import choose_mode
from raysurl.data.source import checked_facts, decode_all
from raysurl.errors import RunError, storage_error, unwritable
from raysurl.recipe import Data, recipe_from
from raysurl.scale import data, nested
from raysurl.scale.blocks import to_table
from raysurl.scale.share import TrialPlacement
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.cells import Trial
from raysurl.sweep.plan import SweepPlan, data_key
from raysurl.sweep.search import Search
from raysurl.sweep.space import Prune, Stop
from raysurl.sweep.trial import Outcome, in_process, run_trial

SMALL_BYTES = 64 * 2**20  # of a data set that the driver decodes by itself
RESTARTS = 2  # of a trial whose process died


def run(
    plan: SweepPlan,
    search: Search,
    directory: Path,
    placed: TrialPlacement,
    *,
    max_hours: float | None,
    started: Callable[[Trial], None],
    ended: Callable[[Trial, Outcome], None],
) -> None:
    """Run what `search` names until it names no more, or for `max_hours`: then no further trial is started.

    Raises RunError where the sweep cannot go on, and StoppedError once the trials that ran have saved.
    """
    prepared = _prepare(plan)
    space = plan.space
    trainable = tune.with_parameters(
        _trial,
        prepared=prepared,
        directory=str(directory),
        stop=space.stop.model_dump(),
        placed=placed,
        signal=space.prune.signal if space.prune else None,
    )
    asker = _Asker(search, directory, max_hours, started, ended)
    experiment = directory / "tune"
    shutil.rmtree(experiment, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, partial(_resources, placed)),
        tune_config=tune.TuneConfig(
            search_alg=asker,
            scheduler=scheduler_of(space.prune),
            num_samples=-1,
            max_concurrent_trials=placed.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{time.time_ns()}",
            storage_path=str(experiment),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    with (directory / "tune.log").open("w") as log, contextlib.redirect_stdout(log):
        _follow(tuner, asker, directory)
    shutil.rmtree(experiment, ignore_errors=True)


def _follow(tuner: tune.Tuner, asker: _Asker, directory: Path) -> None:
    """Until all trials have ended."""
    try:
        stopping.aside(tuner.fit, asker.stop)  # Tune would take the signals
    except Exception as error:
        if found := asker.failed or unwritable(directory):
            raise found from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[-1] if lines else type(error).__name__
        raise RunError(
            f"the sweep stopped: {said}; the same command goes on, {directory / 'tune.log'} may say more"
        ) from error
    if asker.failed:
        raise asker.failed


def _resources(placed: TrialPlacement, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What the trial's own process holds."""
    if (config["recipe"]["scale"]["workers"] or 1) > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    return tune.PlacementGroupFactory([{"CPU": placed.cpus, "GPU": placed.gpus}])


def _prepare(plan: SweepPlan) -> dict[str, data.Splits]:
    """Each data set decoded once into the object store, where every trial reads it without a copy."""
    prepared: dict[str, data.Splits] = {}
    taken = 0
    for key, splits in plan.samples.items():
        settings = Data.model_validate(json.loads(key)[0])
        train = _split(settings, splits[0], taken)
        test = None if splits[1] is None else _split(settings, splits[1], taken + train.nbytes)
        taken += train.nbytes + (test.nbytes if test else 0)
        prepared[key] = train, test
    return prepared


def _split(settings: Data, samples: Samples, taken: int) -> data.PreparedSplit:
    """Small data is decoded here: sooner than a task could start. The rest by tasks, see raysurl.scale.data."""
    nbytes = samples.nbytes_estimate()
    if settings.mode == "streaming" or nbytes > SMALL_BYTES:
        return data.prepare_split(settings, samples, taken=taken)
    mode, why = choose_mode(settings, samples, max(data.store_bytes() - taken, 0))
    shards, skipped = decode_all(samples)
    facts = checked_facts(samples, settings, mode, why, skipped, None, None)
    return data.PreparedSplit(
        [ray.put(to_table(s)) for s in shards], ray.put(samples), ray.put(facts), nbytes
    )


def scheduler_of(prune: Prune | None) -> Any:
    """Ray's scheduler of trials that report their `epoch` and the `signal` that they are pruned by."""
    if prune is None:
        return FIFOScheduler()
    common = {
        "time_attr": "epoch",
        "metric": "signal",
        "mode": prune.mode,
        "grace_period": prune.grace_epochs,
    }
    if prune.kind == "median":
        return MedianStoppingRule(**common, min_samples_required=3)
    # a trial of the last rung ends by itself, after its final evaluation
    rungs = {"max_t": 10**6, "reduction_factor": prune.reduction, "brackets": prune.brackets}
    return ASHAScheduler(**common, **rungs, stop_last_trials=False)


class _Asker(Searcher):
    """Tune's view of a search: it asks here for the next trial and says here that one has ended."""

    def __init__(
        self,
        search: Search,
        directory: Path,
        max_hours: float | None,
        started: Callable[[Trial], None],
        ended: Callable[[Trial, Outcome], None],
    ) -> None:
        super().__init__()
        self._search, self._directory, self._started, self._ended = search, directory, started, ended
        self._until = time.monotonic() + 3600 * max_hours if max_hours else float("inf")
        self._trials: dict[str, Trial] = {}
        self._began: dict[str, float] = {}
        self._stopped = False
        self.failed: RunError | None = None

    def stop(self, signum: int) -> None:
        """No further trial; those that run save and end, without an outcome: the next start goes on with them."""
        self._stopped = True
        for trial in list(self._trials.values()):
            stopping.ask(sweep_directory.trial_directory(self._directory, trial), signum)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        goes_on = time.monotonic() < self._until and not self._stopped and self.failed is None
        trial = self._search.next() if goes_on else None
        if trial is None:
            return str(Searcher.FINISHED)
        with self._noting():
            sweep_directory.remember_once(self._directory, trial)
            stopping.forget(sweep_directory.trial_directory(self._directory, trial))
        if self.failed:
            return str(Searcher.FINISHED)
        self._trials[trial_id], self._began[trial_id] = trial, time.monotonic()
        self._started(trial)
        return {"id": trial.id, "recipe": trial.recipe.model_dump(mode="json")}

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Where the sweep directory cannot be written to, the sweep ends with that sentence."""
        try:
            yield
        except OSError as error:
            self.failed = self.failed or storage_error(error, self._directory) or RunError(str(error))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self._trials.pop(trial_id)
        found = result or {}  # of the last report, its `metrics` flattened by Tune
        stopped = self._stopped or found.get("state") == "stopped"
        if stopped and sweep_directory.is_open(self._directory, trial):
            return
        seconds = float(found.get("seconds", time.monotonic() - self._began.pop(trial_id)))
        reported = {
            k.removeprefix("metrics/"): float(v) for k, v in found.items() if k.startswith("metrics/")
        }
        epochs = int(found.get("epoch", 0))
        if error:
            reason = f"its process died {RESTARTS + 1} times: killed from outside, or for want of memory"
            ending = Outcome("failed", reason, reported, seconds, epochs=epochs)
        else:
            ending = Outcome("pruned", f"ended after epoch {epochs}", reported, seconds, epochs=epochs)
        outcome = ending
        with self._noting():
            outcome = sweep_directory.ended(self._directory, trial, ending)
            self._search.tell(trial, outcome)
        self._ended(trial, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see the module's first lines."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles the searcher for its own restore


def _trial(
    config: dict[str, Any],
    *,
    prepared: dict[str, data.Splits],
    directory: str,
    stop: dict[str, Any],
    placed: TrialPlacement,
    signal: str | None,
) -> dict[str, Any]:
    """What a trial process runs for each trial."""
    recipe = recipe_from(config["recipe"])
    where = Path(directory) / "trials" / config["id"]
    splits = prepared[data_key(recipe)]
    last: dict[str, float] = {}

    def report(values: dict[str, Any]) -> None:
        if values["evaluated"] and signal in values:
            last["signal"] = values[signal]
            metrics = {k: v for k, v in values.items() if "/" in k}
            said = {key: values[key] for key in ("epoch", "seconds")}
            tune.report({"signal": values[signal], "metrics": metrics, **said})

    placement = placed.workers_of(recipe)
    if placement.workers > 1:
        train = nested.on_workers(splits, placement)
    else:
        device = torch.device("cuda" if placed.gpus else "cpu")
        train = in_process(partial(data.open_sources, recipe, splits, 1, alone=True), device)
    try:
        outcome = run_trial(
            recipe, where, train, stop=Stop.model_validate(stop), report=report if signal else None
        )
    except stopping.StoppedError:
        return {"state": "stopped", **last}
    return {"state": outcome.state, "epoch": outcome.epochs, **last}


def store_used() -> float:
    """Bytes of the cluster's object store in use."""
    total, free = (
        resources.get("object_store_memory", 0.0)
        for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return float(total - free)
