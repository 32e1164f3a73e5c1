"""Step time and peak memory of every method beside plain InfoNCE (SimCLR) on the same encoder, images and batch.

Each method trains in a process of its own with one thread; processes take turns, a block of steps each, so that
whatever else the machine does hits all of them. Times are of whole optimizer steps, augmentation and memory included;
memory is what a process holds at its peak beyond what it held before its first step.
"""

import multiprocessing
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.method import available
from raysurl.recipe import load_recipe, yaml_argument
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer

SETTINGS = (
    "data.name=npz", "encoder.name=convnet", "encoder.small_stem=false", "encoder.sobel=false", "train.batch_size=128",
    "train.epochs=99", "train.schedule.warmup_epochs=0", "eval.baselines=false", "log.tensorboard=false",
    "scale.threads=1", "checkpoint.every_epochs=0",
)  # fmt: skip
REFERENCE, BLOCK, WARM = "simclr", 2, 2


def main(arguments: list[str]) -> None:
    """`methods [turns=5] [samples=4096] [key=value of every recipe …]`."""
    given = dict(yaml_argument(a) for a in arguments)
    turns, samples = int(given.get("turns", 5)), int(given.get("samples", 4096))
    changes = [a for a in arguments if a.split("=")[0] not in ("turns", "samples")]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (samples, 32, 32, 3), np.uint8)
        np.savez(Path(folder) / "images.npz", images=images)
        ends: dict[str, Connection] = {}
        for name in available():
            settings = [f"recipe={name}/cifar10", *SETTINGS, f"data.path={folder}/images.npz", *changes]
            recipe = load_recipe(settings)
            if recipe.method.learns_from() != "no":
                continue  # a teacher's cost is its own
            ends[name], theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, settings, folder, name), daemon=True).start()
            theirs.close()  # so that a process that dies is noticed
            ask(ends[name])  # one at a time, until it is built and warm
        answers: dict[str, list[tuple[float, int]]] = {name: [] for name in ends}
        for _ in range(turns):
            for name, end in ends.items():
                answers[name].append(ask(end))
    base = [seconds for seconds, _ in answers[REFERENCE]]
    print(
        f"one thread, {', '.join([*SETTINGS[1:5], *changes])}, heads as in each recipe, {turns} turns of {BLOCK} steps"
    )
    print("| method | ms/step | × SimCLR | peak memory, MiB |\n|---|---|---|---|")
    for name, found in answers.items():
        ratio = statistics.median(s / b for (s, _), b in zip(found, base, strict=True))
        step_ms, peak = statistics.median(s for s, _ in found) * 1e3, max(m for _, m in found)
        print(f"| {name} | {step_ms:.0f} | {ratio:.2f} | {peak / 2**20:.0f} |")


def ask(end: Connection) -> tuple[float, int]:
    end.send(None)
    answer: tuple[float, int] = end.recv()
    return answer


def serve(pipe: Connection, settings: list[str], folder: str, name: str) -> None:
    """In a process of its own: a block of steps each time the other end asks; seconds per step and memory."""
    recipe = load_recipe(settings)
    samples = open_samples(recipe.data, "train", seed=0)
    source = open_source(samples, recipe.data)
    run_dir = Path(folder) / name
    run_dir.mkdir()
    run = trainer.start(recipe, LocalRuntime(torch.device("cpu")), source, None, run_dir)
    run.model.train()
    before = peak_bytes()
    for turn in range(10**9):
        try:
            pipe.recv()
        except EOFError:
            return  # the other end has what it wants
        began = time.perf_counter()
        count = WARM if turn == 0 else BLOCK
        for micro_batches, _ in run.loader.steps(run.step, run.step + count):
            trainer.train_step(run, micro_batches)
            run.step += 1
        pipe.send(((time.perf_counter() - began) / count, peak_bytes() - before))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
