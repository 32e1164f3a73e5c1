"""runtime=ray: Ray Data decodes, Ray Train runs the trainer on every worker, an actor keeps the memory.

`run` is a whole run from the driver; `fit` is its training, of a trial with several workers too (raysurl.scale.nested).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from raysurl import distributed, stopping
from raysurl.data.names import Samples
from raysurl.errors import DivergedError, InputError, RunError, unwritable
from raysurl.memory.record import MemoryRecord
from raysurl.metrics import decoding_progress, latest_step
from raysurl.recipe import Recipe, recipe_from
from raysurl.runtime import default_device
from raysurl.scale import cluster, data, failure, group, joining, memory
from raysurl.scale.cluster import Placement
from raysurl.scale.line import EpochReport
from raysurl.scale.record import ActorRecord
from raysurl.train import cost, trainer
from raysurl.train.lock import following

RAY_FILES = "ray"  # Ray Train's own, in the run directory
WORKERS_LOCK = ".workers.lock"


class EndedError(Exception):
    """Raised out of the trainer, on every rank, where the trial that watches the run has ended it."""


@dataclass
class RayRuntime:
    """What the trainer sees of Ray Train; the twin of raysurl.runtime.LocalRuntime. `line`: to the trial, if any."""

    rank: int
    world_size: int
    device: torch.device
    record: MemoryRecord | None
    run_dir: Path
    line: ActorHandle | None = None
    name: str = "ray"

    def begin(self) -> None:
        if self.line:
            self._ask_trial(None)

    def report(self, metrics: dict[str, Any]) -> None:
        """To the trial, where one watches. Ray itself is told nothing: it would keep nothing of it, and answer no
        sooner than its next look at the workers, half a second for each epoch."""
        if self.line:
            self._ask_trial((metrics, latest_step(self.run_dir / "metrics.jsonl")))

    def _ask_trial(self, what: EpochReport) -> None:
        """Rank 0 waits for the trial's answer, and the others for rank 0. Raises EndedError."""
        goes_on = ray.get(self.line.report.remote(what)) if self.line and self.rank == 0 else None
        if not distributed.broadcast_object(goes_on):
            raise EndedError


def check(recipe: Recipe) -> None:
    """Connect, and see that the cluster can hold the workers. Raises InputError or RunError."""
    joining.connect()
    cluster.place(recipe)


def measure(recipe: Recipe, samples: Samples) -> tuple[cost.Pace | None, int]:
    """The pace of one of the workers, and how many there will be: in a task on a GPU, or where nodes differ."""
    placement = cluster.place(recipe)
    if not placement.gpus:
        recipe = recipe.with_threads(int(placement.cpus))
        if len(cluster.alive()) == 1:
            return cost.measure(recipe, samples, torch.device("cpu"), placement.workers), placement.workers
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0)(_measured)
    found = ray.get(task.remote(recipe.model_dump(mode="json"), samples, placement.workers))
    return found, placement.workers


def _measured(recipe: dict[str, Any], samples: Samples, workers: int) -> cost.Pace | None:
    return cost.measure(recipe_from(recipe), samples, default_device(), workers)


def run(recipe: Recipe, samples: Samples, eval_samples: Samples | None, run_dir: Path) -> None:
    """The driver's part. Returns when the run is finished."""
    placement = cluster.place(recipe)
    if not placement.gpus:
        recipe = recipe.with_threads(int(placement.cpus))
    prepared = data.prepare(recipe, samples, eval_samples, run_dir, decoding_progress(run_dir))
    resident = all(split is None or split.tables for split in prepared)
    # else the workers read by Ray Data, which would start it again
    if resident and recipe.views.device == "trainer":
        group.end_statistics()
    fit(recipe, placement, prepared, run_dir)


def fit(
    recipe: Recipe,
    placement: Placement,
    prepared: data.Splits,
    run_dir: Path,
    *,
    line: ActorHandle | None = None,
) -> None:
    """Memory actor and worker group, from the newest checkpoint to the end, or until the trial at `line` ends it.

    Raises InputError, RunError, or StoppedError, once the workers have saved.
    """
    actor = _memory_actor(recipe, len(ray.get(prepared[0].facts).readable))
    # a worker that hangs where no other waits for it is one that Ray gives up, after ten minutes if it is not told
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(recipe.scale.timeout_s)
    name = f"train-{time.time_ns()}"  # a known name would resume Ray's own idea of a run
    config = {
        "name": name,
        "recipe": recipe.model_dump(mode="json"),
        "data": prepared,
        "actor": actor,
        "line": line,
        "run_dir": str(run_dir),
    }
    workers = group.Group(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(
            backend="nccl" if placement.gpus else "gloo", timeout_s=int(recipe.scale.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus),
            resources_per_worker=placement.resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(run_dir / RAY_FILES),
            failure_config=FailureConfig(max_failures=recipe.scale.max_failures),
        ),
    )
    try:
        stopping.aside(workers.fit, partial(stopping.ask, run_dir))  # Ray Train would take the signals
    except Exception as error:  # Ray wraps whatever a worker raised
        if found := failure.told_if_ray_lives(name) or unwritable(run_dir):
            raise found from None
        advice = "" if line else f"; continue with resume=true output={run_dir}"
        raise RunError(f"training stopped: {_last_line(error)}{advice}") from error
    finally:
        if actor is not None:
            ray.kill(actor)
    if found := failure.told(name):
        failure.forget(name)
        raise found
    if signum := stopping.asked(run_dir):
        raise stopping.StoppedError(signum)


def train_worker(config: dict[str, Any]) -> None:
    """What each worker runs, and runs again after a failure: it goes on from the newest checkpoint."""
    run_dir, name = Path(config["run_dir"]), config["name"]
    if failure.told(name):  # final: starting again would end the same way
        return
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    record, line = None, config["line"]
    try:
        recipe = recipe_from(config["recipe"])
        if not (run_dir / "recipe.yaml").is_file():
            raise RuntimeError(
                f"output={run_dir} is not visible from every node; name a directory on shared storage"
            )
        # the workers of a driver or of a trial that was killed die a moment later
        alone = following(run_dir, WORKERS_LOCK) if rank == 0 else contextlib.nullcontext()
        if rank == 0 and config["actor"] is not None:
            record = ActorRecord(config["actor"], timeout_s=recipe.scale.timeout_s)
        runtime = RayRuntime(rank, world_size, ray.train.torch.get_device(), record, run_dir, line)
        with alone:
            source, eval_source = data.open_sources(recipe, config["data"], world_size, alone=bool(line))
            runtime.begin()
            trainer.train(recipe, runtime, source, eval_source, run_dir)
    except (EndedError, stopping.StoppedError):
        return
    except (InputError, RunError) as error:
        failure.tell(name, error)
        if world_size > 1 and not isinstance(error, DivergedError):  # which all ranks find alike
            raise  # or the other ranks would wait for this one


def _memory_actor(recipe: Recipe, num_samples: int) -> Any:
    if recipe.method.remembers() is None:
        return None
    return memory.create(partial(recipe.method.memory, num_samples, recipe.stream_seed))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
