"""What online clustering adds to a step of RCL: without clusters, with them at staleness 1, and at staleness 0.

Each arm has its own memory actor; the step and the actor have one thread each. Floor: an update of the hierarchy (see
`benchmark.py hierarchy`) takes less time than a step, so at staleness 1 it should cost the step nothing but the
answer's way back. Arms take turns, a block of steps each, so that whatever else the machine does hits all of them.
"""

import functools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.recipe import load_recipe, yaml_argument
from raysurl.runtime import LocalRuntime
from raysurl.scale import joining, memory
from raysurl.scale.record import ActorRecord
from raysurl.train import trainer

SETTINGS = (
    "recipe=rcl/cifar10", "encoder.small_stem=false", "train.batch_size=128", "train.schedule.warmup_epochs=0",
    "method.warmup_epochs=0", "eval.baselines=false", "log.tensorboard=false", "scale.threads=1", "train.epochs=999",
)  # fmt: skip
ARMS = {"no clusters": 1, "clusters, staleness 1": 1, "clusters, staleness 0": 0}
BLOCK, WARM = 4, 8  # steps of an arm in turn; steps before anything is timed


@dataclass
class Arm:
    run: trainer.Run
    seconds: list[float]


def main(arguments: list[str]) -> None:
    """`clustering [turns=12] data.name=… data.path=… [key=value of the recipe …]`; without data, random images."""
    given = dict(yaml_argument(a) for a in arguments)
    turns = int(given.get("turns", 12))
    changes = [a for a in arguments if not a.startswith("turns=")]
    joining.connect()
    with tempfile.TemporaryDirectory() as folder:
        if "data.name" not in given:
            images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), np.uint8)
            np.savez(Path(folder) / "images.npz", images=images)
            changes += ["data.name=npz", f"data.path={folder}/images.npz"]
        arms = {name: begin(name, stale, changes, Path(folder)) for name, stale in ARMS.items()}
        for turn in range(turns + WARM // BLOCK):
            for arm in arms.values():
                seconds = block(arm.run)
                if turn >= WARM // BLOCK:
                    arm.seconds.append(seconds / BLOCK)
    base = arms["no clusters"].seconds
    print(f"RCL step, {', '.join(changes)}, {turns} turns of {BLOCK} steps")
    for name, arm in arms.items():
        ratio = statistics.median(a / b for a, b in zip(arm.seconds, base, strict=True))
        print(f"{name:24} {statistics.median(arm.seconds) * 1e3:7.1f} ms/step  {ratio:5.3f} × no clusters")


def begin(name: str, staleness: int, changes: list[str], folder: Path) -> Arm:
    """A run of its own whose memory is an actor, with clusters made where the arm has any."""
    recipe = load_recipe([*SETTINGS, *changes, f"memory.staleness={staleness}"])
    samples = open_samples(recipe.data, "train", seed=recipe.seed)
    source = open_source(samples, recipe.data)
    make = functools.partial(recipe.method.memory, len(source.readable), 0)
    record = ActorRecord(memory.create(make), timeout_s=600)
    run_dir = folder / name.replace(" ", "-")
    run_dir.mkdir()
    runtime = LocalRuntime(torch.device("cpu"), record=record)
    run = trainer.start(recipe, runtime, source, None, run_dir)
    if name != "no clusters":
        trainer.refresh_memory(run)
    run.model.train()
    return Arm(run, [])


def block(run: trainer.Run) -> float:
    """Seconds of the next steps; the call still in flight at the end belongs to them."""
    began = time.perf_counter()
    for micro_batches, _ in run.loader.steps(run.step, run.step + BLOCK):
        trainer.train_step(run, micro_batches)
        run.step += 1
    assert run.memory is not None
    run.memory.drain()
    return time.perf_counter() - began
