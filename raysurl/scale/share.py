"""What the trials of a sweep take of a cluster, and how many run at once; known before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raysurl.data.residency import STORE_SHARE, available_memory
from raysurl.errors import InputError
from raysurl.recipe import Recipe
from raysurl.scale import cluster, joining
from raysurl.scale.cluster import Placement
from raysurl.sweep.plan import SweepPlan

PROCESS_BYTES = 600 * 2**20  # of a training process without the shared data, on CPU
_ENVIRONMENT = {  # of Tune
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's own metrics.jsonl is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state is not what a sweep goes on from
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every report has a pruning signal
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Resources:
    """What each trial takes of a node, or each of its workers where it has several, and how many trials at most run at
    once (None: as many as fit)."""

    cpus: float | None = None  # None: scale.threads of the trials
    gpus: float | None = None  # None: one where the cluster has any
    max_concurrent: int | None = None


@dataclass(frozen=True)
class TrialPlacement:
    """`cpus` and `gpus` of each process that trains."""

    cpus: float
    gpus: float
    concurrent: int

    def workers_of(self, recipe: Recipe) -> Placement:
        return Placement(recipe.scale.workers or 1, self.cpus, self.gpus)


def check(plan: SweepPlan, share: Resources) -> TrialPlacement:
    """Connect, and see that the cluster can hold a trial, for Tune and Ray Train would wait for ever.

    Every trial counts as the largest one, and every process takes the same, so that any mixture of as many trials as
    run at once has room for all its workers. Raises InputError.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # before Ray starts: the processes of trials inherit it
    joining.connect()
    nodes = cluster.alive()
    workers = max((recipe.scale.workers or 1 for recipe in plan.recipes), default=1)
    threads = max((recipe.scale.threads or 1 for recipe in plan.recipes), default=1)
    cpus = share.cpus if share.cpus is not None else float(threads)
    gpus = share.gpus if share.gpus is not None else float(any(n.get("GPU", 0) for n in nodes))
    if cpus < 0 or gpus < 0 or cpus + gpus == 0:
        raise InputError(f"cpus={cpus:g} gpus={gpus:g}: a trial must take something of a node")
    if share.max_concurrent is not None and share.max_concurrent < 1:
        raise InputError(f"max_concurrent={share.max_concurrent} must be at least 1")
    room = _room(nodes, cpus, gpus)
    if workers > room:
        raise InputError(
            f"scale.workers={workers} needs {cpus:g} CPUs and {gpus:g} GPUs for each worker and the cluster's"
            f" {len(nodes)} node(s) hold at most {room} of them; use scale.workers={room} or fewer"
        )
    if workers > 1 and gpus % 1:
        raise InputError(
            f"gpus={gpus:g}: two workers of one trial cannot share a GPU; use gpus=1, or scale.workers=1"
        )
    bounds = [room // workers, share.max_concurrent or room]
    if len(nodes) == 1:
        processes = workers + 1 if workers > 1 else 1  # the trial's own process watches its workers
        memory = int(available_memory() / STORE_SHARE * (1 - STORE_SHARE))
        bounds.append(max(memory // (processes * PROCESS_BYTES), 1))
    return TrialPlacement(cpus, gpus, min(bounds))


def _room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many processes all nodes hold together."""
    room = sum(cluster.fit(node, cpus, gpus) for node in nodes)
    if room == 0:
        largest, most = (max((n.get(key, 0) for n in nodes), default=0) for key in ("CPU", "GPU"))
        raise InputError(
            f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs and no node has them: the largest of {len(nodes)} node(s)"
            f" has {largest:g} CPUs, and {most:g} GPUs is the most; use cpus= and gpus= that one node can give"
        )
    return room
