"""What the flow costs: one recipe as a bare PyTorch loop, under Ray Train with one worker, and with two.

The bare loop holds its images in a tensor and does what a step must do: augment, forward, backward, update, teacher,
queue. Floor: the same floating-point work in both, so the ratio of their times is what data, memory actor, metrics
and Ray add. Runs take turns, medians are shown, each process has `threads` threads.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from raysurl import build, metrics
from raysurl.method import Batch, Progress
from raysurl.recipe import Recipe, load_recipe, yaml_argument
from raysurl.run import pretrain
from raysurl.sampler import Request
from raysurl.train import optim
from raysurl.views.augmenter import Augment

SETTINGS = (
    "recipe=ressl/cifar10", "data.name=npz", "encoder.small_stem=false", "train.batch_size=128",
    "train.schedule.warmup_epochs=0", "eval.every_epochs=0", "eval.protocols=[]", "eval.baselines=false",
    "checkpoint.every_epochs=0", "log.tensorboard=false", "log.every_steps=1",
)  # fmt: skip
SKIP = 4  # first steps of each run, while caches and allocators warm up


def main(arguments: list[str]) -> None:
    """`step [runs=3] [steps=24] [threads=1] [key=value of the recipe …]`."""
    given = dict(yaml_argument(a) for a in arguments)
    runs, steps, threads = (int(given.pop(k, d)) for k, d in (("runs", 3), ("steps", 24), ("threads", 1)))
    changes = [a for a in arguments if a.split("=")[0] in given]
    recipe = load_recipe([*SETTINGS, *changes])
    batch = recipe.train.batch_size
    seconds, waits = compared(changes, runs, steps, threads)
    print(
        f"ReSSL step, batch {batch}, {recipe.encoder.name}, {threads} thread(s) per process, median of {runs} runs"
    )
    base = statistics.median(seconds["bare loop"])
    for name, values in seconds.items():
        s = statistics.median(values)
        wait = f", waiting for data {statistics.median(waits[name]):.1%}" if waits[name] else ""
        spread = f"{min(values) * 1e3:.0f}–{max(values) * 1e3:.0f}"
        print(
            f"{name:15} {s * 1e3:7.1f} ms/step ({spread})  {batch / s:6.0f} images/s  {s / base:5.3f} × bare{wait}"
        )
    one, two = (statistics.median(seconds[f"ray, {w}"]) for w in ("1 worker", "2 workers"))
    print(f"two workers give {one / two:.2f} × the images/s of one")


def compared(
    changes: list[str], runs: int, steps: int, threads: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Of each case and run: the median seconds of a step, and the share of them spent waiting for data."""
    seconds: dict[str, list[float]] = {"bare loop": [], "ray, 1 worker": [], "ray, 2 workers": []}
    waits: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as folder:
        batch = load_recipe([*SETTINGS, *changes]).train.batch_size
        images = np.random.default_rng(0).integers(0, 256, (steps * batch, 32, 32, 3), np.uint8)
        np.savez(Path(folder) / "images.npz", images=images)
        settings = [
            *SETTINGS, f"data.path={folder}/images.npz", "train.epochs=1", f"scale.threads={threads}", *changes
        ]  # fmt: skip
        for run in range(runs):
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            seconds["bare loop"].append(bare(load_recipe(settings), pixels, steps))
            for workers in (1, 2):
                name = f"ray, {workers} worker{'s' * (workers > 1)}"
                output = f"output={folder}/{workers}-{run}"
                step_s, wait = under_ray(load_recipe([*settings, f"scale.workers={workers}", output]))
                seconds[name].append(step_s)
                waits[name].append(wait)
    return seconds, waits


def bare(recipe: Recipe, images: torch.Tensor, steps: int) -> float:
    """Median seconds of a step of the plain loop."""
    torch.set_num_threads(recipe.scale.threads or 1)
    method = build.method_of(recipe, num_samples=len(images)).train()
    queue = recipe.method.memory(len(images), 0)
    assert queue is not None
    batch_size, settings = recipe.train.batch_size, recipe.train.optimizer
    augment = Augment(recipe.view_policies(), recipe.views, recipe.seed, batch_size)
    optimizer = optim.build_optimizer(method, settings)
    order, times = torch.randperm(len(images)), []
    for step in range(steps):
        since = time.perf_counter()
        index = order[step * batch_size : (step + 1) * batch_size]
        views = augment(Request(step, 0, index.numpy()), images[index])
        progress = Progress(step, steps, steps)
        optim.set_lr(optimizer, optim.learning_rate(settings.lr, recipe.train.schedule, progress))
        output = method(Batch(index, views), queue.snapshot(), progress)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress)
        queue.push(output.push.keys.flatten(0, 1), index)
        output.loss.item()
        times.append(time.perf_counter() - since)
    return statistics.median(times[SKIP:])


def under_ray(recipe: Recipe) -> tuple[float, float]:
    """Median seconds of a step, and the share of them spent waiting for data, from the run's own record."""
    run_dir = pretrain(recipe)
    lines = [line for line in metrics.read(run_dir / "metrics.jsonl") if "speed/images_per_s" in line][SKIP:]
    step_s = statistics.median(recipe.train.batch_size / line["speed/images_per_s"] for line in lines)
    return step_s, statistics.median(line["speed/data_wait"] for line in lines)
