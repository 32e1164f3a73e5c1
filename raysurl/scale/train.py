"""runtime=ray: Ray Data decodes, Ray Train runs the trainer on every worker, an actor keeps the memory."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raysurl import trainer
from raysurl.data.names import Samples
from raysurl.errors import InputError, RunError
from raysurl.memory_link import Record
from raysurl.metrics import decoding_progress
from raysurl.recipe import Recipe, recipe_from
from raysurl.run_directory import write_atomic
from raysurl.scale import cluster, data, memory

FAILURE = "failure.json"  # how a worker tells the driver, in one sentence, that the run cannot go on


@dataclass
class RayRuntime:
    """What the trainer sees of Ray Train; the twin of raysurl.runtime.LocalRuntime."""

    rank: int
    world_size: int
    device: torch.device
    record: Record | None
    name: str = "ray"

    def report(self, metrics: dict[str, Any]) -> None:
        ray.train.report(metrics)


def check(recipe: Recipe) -> None:
    """Connect, and see that the cluster can hold the workers. Raises InputError or RunError."""
    cluster.connect()
    cluster.place(recipe)


def run(recipe: Recipe, samples: Samples, eval_samples: Samples | None, run_dir: Path) -> None:
    """The driver's part: data, memory actor, worker group. Returns when the run is finished."""
    placement = cluster.place(recipe)
    prepared = data.prepare(recipe, samples, eval_samples, run_dir, decoding_progress(run_dir))
    actor = _memory_actor(recipe, len(samples))
    (run_dir / FAILURE).unlink(missing_ok=True)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "data": prepared,
        "actor": actor,
        "run_dir": str(run_dir),
    }
    fit = TorchTrainer(
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
            name=f"train-{time.time_ns()}",  # a known name would resume Ray's own idea of a run
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=recipe.scale.max_failures),
        ),
    )
    try:
        fit.fit()
    except Exception as error:  # Ray wraps whatever a worker raised
        raise RunError(
            f"training stopped: {_last_line(error)}; continue with resume=true output={run_dir}"
        ) from error
    finally:
        if actor is not None:
            ray.kill(actor)
    raise_failure(run_dir)


def train_worker(config: dict[str, Any]) -> None:
    """What each worker runs, and runs again after a failure: it goes on from the newest checkpoint."""
    recipe = recipe_from(config["recipe"])
    run_dir = Path(config["run_dir"])
    if not (run_dir / "recipe.yaml").is_file():
        raise RuntimeError(
            f"output={run_dir} is not visible from every node; name a directory on shared storage"
        )
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    record = None
    if rank == 0 and config["actor"] is not None:
        record = memory.ActorRecord(config["actor"], timeout_s=recipe.scale.timeout_s)
    runtime = RayRuntime(rank, world_size, ray.train.torch.get_device(), record)
    try:
        source, eval_source = data.open_sources(recipe, config["data"], rank, world_size)
        trainer.train(recipe, runtime, source, eval_source, run_dir)
    except (InputError, RunError) as error:  # final: starting again would end the same way
        failure = {
            "kind": type(error).__name__,
            "message": str(error),
            "input": isinstance(error, InputError),
        }
        write_atomic(run_dir / FAILURE, json.dumps(failure))  # whichever rank found it


def raise_failure(run_dir: Path) -> None:
    """Raise what a worker has left in the run directory."""
    path = run_dir / FAILURE
    if path.exists():
        failure = json.loads(path.read_text())
        raise (InputError if failure["input"] else RunError)(failure["message"])


def _memory_actor(recipe: Recipe, num_samples: int) -> Any:
    make = partial(
        recipe.method_class().memory, recipe.method_config(), num_samples=num_samples, seed=recipe.seed
    )
    return None if make() is None else memory.create(make)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
