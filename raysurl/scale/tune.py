"""Trials on Ray Tune: which process runs which trial; what a trial does is raysurl.sweep.trial.

Tune starts trials, bounds how many run at once, uses their processes again and starts one again whose process died.
What has been done stands in the sweep directory, not in Tune's: a new start reads it there, so Tune's own experiment
state is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from raysurl.data.names import Samples
from raysurl.data.residency import STORE_SHARE, available_memory, choose_mode
from raysurl.data.source import Source, StreamingSource, decode_all, settle
from raysurl.errors import InputError
from raysurl.recipe import Data, recipe_from
from raysurl.scale import cluster, data
from raysurl.scale.blocks import to_table
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.cells import Trial
from raysurl.sweep.plan import Plan, data_key
from raysurl.sweep.search import Search
from raysurl.sweep.space import Prune, Stop
from raysurl.sweep.trial import Outcome, run_trial

TRIAL_BYTES = 600 * 2**20  # of a trial process without the shared data, on CPU
SMALL_BYTES = 64 * 2**20  # of a data set that the driver decodes by itself
RESTARTS = 2  # of a trial whose process died
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's own metrics.jsonl is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state is not what a sweep goes on from
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every report has a pruning signal
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Share:
    """What each trial takes of a node, and how many trials at most run at once (None: as many as fit)."""

    cpus: float | None = None  # None: scale.threads of the trials
    gpus: float | None = None  # None: one where the cluster has any
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Placed:
    cpus: float
    gpus: float
    concurrent: int


def check(plan: Plan, share: Share) -> Placed:
    """Connect, and see that a node can hold a trial, for Tune would wait for ever. Raises InputError."""
    if many := [t.recipe.scale.workers for t in plan.trials if (t.recipe.scale.workers or 1) > 1]:
        raise InputError(
            f"scale.workers={many[0]}: a trial of a sweep is one process; leave out scale.workers"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cluster.connect()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    threads = max((t.recipe.scale.threads for t in plan.trials), default=1)
    cpus = share.cpus if share.cpus is not None else float(threads)
    gpus = share.gpus if share.gpus is not None else float(any(n.get("GPU", 0) for n in nodes))
    if cpus < 0 or gpus < 0 or cpus + gpus == 0:
        raise InputError(f"cpus={cpus:g} gpus={gpus:g}: a trial must take something of a node")
    room = sum(_fit(n, cpus, gpus) for n in nodes)
    if room == 0:
        largest = max((n.get("CPU", 0) for n in nodes), default=0)
        raise InputError(
            f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs and no node has them: the largest of {len(nodes)} node(s)"
            f" has {largest:g} CPUs, and {max((n.get('GPU', 0) for n in nodes), default=0):g} GPUs is the most; use"
            " cpus= and gpus= that one node can give"
        )
    memory = max(int(available_memory() / STORE_SHARE * (1 - STORE_SHARE)) // TRIAL_BYTES, 1)
    bounds = [room, memory if len(nodes) == 1 else room, share.max_concurrent or room]
    if share.max_concurrent is not None and share.max_concurrent < 1:
        raise InputError(f"max_concurrent={share.max_concurrent} must be at least 1")
    return Placed(cpus, gpus, min(bounds))


def _fit(node: dict[str, float], cpus: float, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0) / cpus + 1e-9) if cpus else 10**6
    return min(by_cpu, int(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def run(
    plan: Plan,
    search: Search,
    directory: Path,
    placed: Placed,
    *,
    max_hours: float | None,
    started: Callable[[Trial], None],
    ended: Callable[[Trial, Outcome], None],
) -> None:
    """Run what `search` names until it names no more, or for `max_hours`: then no further trial is started."""
    prepared = _prepare(plan)
    space = plan.space
    trainable = tune.with_parameters(
        _trial,
        prepared=prepared,
        directory=str(directory),
        stop=space.stop.model_dump(),
        device="cuda" if placed.gpus else "cpu",
        signal=space.prune.signal if space.prune else None,
    )
    asker = _Asker(search, directory, max_hours, started, ended)
    experiment = directory / "tune"
    shutil.rmtree(experiment, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": placed.cpus, **({"gpu": placed.gpus} if placed.gpus else {})}),
        tune_config=tune.TuneConfig(
            search_alg=asker,
            scheduler=_scheduler(space.prune, plan),
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
        tuner.fit()
    shutil.rmtree(experiment, ignore_errors=True)


def _prepare(plan: Plan) -> dict[str, Any]:
    """Each data set decoded once into the object store, where every trial reads it without a copy."""
    prepared: dict[str, Any] = {}
    taken = 0
    for key, splits in plan.samples.items():
        settings = Data.model_validate(json.loads(key)[0])
        held: list[data.Prepared | None] = []
        for samples in splits:
            held.append(None if samples is None else _split(settings, samples, taken))
            taken += held[-1].nbytes if held[-1] else 0
        prepared[key] = tuple(held)
    return prepared


def _split(settings: Data, samples: Samples, taken: int) -> data.Prepared:
    """Small data is decoded here: sooner than a task could start. The rest by tasks, see raysurl.scale.data."""
    nbytes = samples.nbytes_estimate()
    if settings.mode == "streaming" or nbytes > SMALL_BYTES:
        return data.prepare_split(settings, samples, taken=taken)
    mode, why = choose_mode(settings, samples, max(data.store_bytes() - taken, 0))
    shards, skipped = decode_all(samples)
    facts = settle(samples, settings, mode, why, skipped, None, None)
    return data.Prepared([ray.put(to_table(s)) for s in shards], ray.put(samples), ray.put(facts), nbytes)


def _scheduler(prune: Prune | None, plan: Plan) -> Any:
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
    return ASHAScheduler(**common, max_t=10**6, reduction_factor=prune.reduction, stop_last_trials=False)


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

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self._search.next() if time.monotonic() < self._until else None
        if trial is None:
            return str(Searcher.FINISHED)
        self._trials[trial_id], self._began[trial_id] = trial, time.monotonic()
        sweep_directory.remember_once(self._directory, trial)
        self._started(trial)
        return {"id": trial.id, "recipe": trial.recipe.model_dump(mode="json")}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self._trials.pop(trial_id)
        seconds = time.monotonic() - self._began.pop(trial_id)
        reported = dict((result or {}).get("metrics", {}))
        epochs = int((result or {}).get("epoch", 0))
        if error:
            reason = f"its process died {RESTARTS + 1} times: killed from outside, or for want of memory"
            ending = Outcome("failed", reason, reported, seconds, epochs=epochs)
        else:
            ending = Outcome("pruned", f"ended after epoch {epochs}", reported, seconds, epochs=epochs)
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
    prepared: dict[str, Any],
    directory: str,
    stop: dict[str, Any],
    device: str,
    signal: str | None,
) -> dict[str, Any]:
    """What a trial process runs for each trial."""
    recipe = recipe_from(config["recipe"])
    where = Path(directory) / "trials" / config["id"]

    last: dict[str, float] = {}

    def open_sources() -> tuple[Source, Source | None]:
        train, test = prepared[data_key(recipe)]
        return _open(train, recipe.data), None if test is None else _open(test, recipe.data)

    def report(values: dict[str, Any]) -> None:
        if values["evaluated"] and signal in values:
            last["signal"] = values[signal]
            metrics = {k: v for k, v in values.items() if "/" in k}
            tune.report({"signal": values[signal], "epoch": values["epoch"], "metrics": metrics})

    outcome = run_trial(
        recipe,
        where,
        open_sources,
        stop=Stop.model_validate(stop),
        device=torch.device(device),
        report=report if signal else None,
    )
    return {"state": outcome.state, "epoch": outcome.epochs, **last}


def _open(prepared: data.Prepared, settings: Data) -> Source:
    """Shared shards, or a source that this process alone reads: Ray Data would want CPUs that the trials have."""
    facts = ray.get(prepared.facts)
    if facts.mode == "streaming":
        return StreamingSource(ray.get(prepared.samples), facts, settings.window)
    return prepared.open(settings)


def store_used() -> float:
    """Bytes of the cluster's object store in use."""
    total, free = (
        resources.get("object_store_memory", 0.0)
        for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return float(total - free)
