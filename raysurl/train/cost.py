"""What a run will cost, from a few trial steps that count for nothing, and a run cut to what it may cost.

The trial is a run of its own, on a few images again and again, in a folder that is thrown away: the run itself begins
later, from its seed, and cannot tell. Letters: N samples, B global batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysurl.data.dataset import Samples, Unreadable, evenly
from raysurl.data.decode import Array
from raysurl.data.machine import cores
from raysurl.data.shards import Shard, pack
from raysurl.data.source import ResidentSource, SourceFacts
from raysurl.embed import embed
from raysurl.errors import InputError, RunError
from raysurl.method import Progress
from raysurl.recipe import Recipe, shortened
from raysurl.report.recipe import flatten
from raysurl.report.run import duration
from raysurl.runtime import LocalRuntime
from raysurl.train import advice, trainer

STEPS = {"cpu": 5, "cuda": 8}  # on a GPU the first ones are recorded
TIMED = 3  # the last ones, of which the fastest counts: whatever else the machine does just then only adds
SMALL, AT_ONCE_S = (
    32,
    10.0,
)  # a CPU is timed with so small a batch first, and with the whole one where that is soon done
IMAGES, DECODING_S = 64, 2.0  # decoded for the trial, as many as that takes so long
REFRESHED = 5000  # samples at most, where memory is first built from all of them
LEAST_STEPS = 100  # of a run whose cost is worth saying
BUDGETS = {"quick": 600.0, "standard": 7200.0}  # seconds of a preset; paper: the recipe as it stands
SPENT = 0.8  # of these is planned, since a measured speed is no promise
LEAST_EPOCHS, LEAST_SAMPLES = 10, 64  # rather than fewer epochs a preset takes fewer samples


@dataclass(frozen=True)
class Pace:
    """Seconds of training on a sample, of embedding one, and of reading one from disk; the first of all workers."""

    training: float
    embedding: float
    reading: float


@dataclass(frozen=True)
class Sizes:
    """Samples to train on, those that each evaluation embeds, and of these the ones that classifiers learn from."""

    train: int
    evaluated: int
    labelled: int = 0

    def of(self, count: int) -> Sizes:
        """The same data cut to `count` samples to train on."""
        return Sizes(count, self.evaluated * count // self.train, self.labelled * count // self.train)


# -------------------------------------------------------------------- measuring


def measure(recipe: Recipe, samples: Samples, device: torch.device, workers: int = 1) -> Pace | None:
    """The pace of one of so many workers; None where the trial cannot be made of these samples."""
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _trial(recipe, samples, device, workers, Path(folder))
    except (InputError, RunError):  # what is wrong with the run itself, the run says
        return None
    finally:
        torch.set_num_threads(threads)


def _trial(recipe: Recipe, samples: Samples, device: torch.device, workers: int, folder: Path) -> Pace:
    loaded, reading = _some(samples)
    first = Progress(0, 1, 1, recipe.stream_seed, recipe.train.rounds)
    count = len(samples) if recipe.method.refresh(first) == "no" else min(len(samples), REFRESHED)
    source = ResidentSource(_repeated(loaded, count), _facts(samples, count))
    batch = max(recipe.train.batch_size // workers, 2)
    small = min(batch, SMALL) if device.type == "cpu" else batch
    step, embedding = _timed(_alone(recipe, small), source, device, folder / "small")
    if small < batch and STEPS[device.type] * step * batch / small <= AT_ONCE_S:
        step, embedding = _timed(_alone(recipe, batch), source, device, folder / "whole")
        small = batch
    return Pace(step / (small * (recipe.train.batch_size // batch)), embedding, reading)


def _timed(recipe: Recipe, source: ResidentSource, device: torch.device, folder: Path) -> tuple[float, float]:
    """Seconds of a step, and of embedding a sample."""
    folder.mkdir()
    run = trainer.start(recipe, LocalRuntime(device), source, None, folder)
    trainer.refresh_memory(run)
    run.model.train()
    steps, took = min(STEPS.get(device.type, 5), run.total_steps), []
    since = time.perf_counter()
    for micro_batches, _ in run.loader.steps(0, steps):
        trainer.train_step(run, micro_batches)
        run.step += 1
        _finish(device)
        took.append(time.perf_counter() - since)
        since = time.perf_counter()
    few = np.arange(min(2 * recipe.train.batch_size, len(source)))
    embedding = []
    for _ in range(2):  # the first one warms up
        since = time.perf_counter()
        embed(run.method.encoder, source, recipe, device, few)
        embedding.append((time.perf_counter() - since) / len(few))
    return min(took[-TIMED:]), embedding[-1]


def _some(samples: Samples) -> tuple[list[Array], float]:
    """A few decoded samples, and the seconds that one takes."""
    found: list[Array] = []
    began, tried = time.perf_counter(), 0
    for index in evenly(len(samples), IMAGES):
        found += [x for x in samples.load([int(index)]) if not isinstance(x, Unreadable)]
        tried += 1
        if found and time.perf_counter() - began > DECODING_S:
            break
    if not found:
        raise InputError("none of a few samples can be read")
    return found, (time.perf_counter() - began) / tried


def _repeated(loaded: Sequence[Array], count: int) -> list[Shard]:
    """`count` samples that take the memory of a few."""
    shard, (whole, rest) = pack(loaded), divmod(count, len(loaded))
    return [shard] * whole + ([pack(loaded[:rest])] if rest else [])


def _facts(samples: Samples, count: int) -> SourceFacts:
    def part(values: NDArray[Any] | None) -> Any:
        return None if values is None else values[:count]

    return SourceFacts(
        np.ones(count, bool),
        (),
        part(samples.labels),
        samples.class_names,
        "resident",
        split=part(samples.split),
    )


def _alone(recipe: Recipe, batch: int) -> Recipe:
    """The recipe of one worker, which leaves nothing behind."""
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"batch_size": batch, "accumulate": 1}),
            "log": recipe.log.model_copy(update={"tensorboard": False, "wandb": False, "mlflow": False}),
            "init_from": None,
        }
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -------------------------------------------------------------------- cost


def seconds(recipe: Recipe, pace: Pace, sizes: Sizes, workers: int = 1) -> float:
    """About how long the run takes: reading, training, embeddings for memory and for each evaluation, classifiers."""
    per_epoch, epochs, settings = sizes.train // recipe.train.batch_size, recipe.total_epochs, recipe.eval
    streams = recipe.data.mode == "streaming"
    step = recipe.train.batch_size * max(pace.training, pace.reading / workers if streams else 0.0)
    moments = (
        Progress(e * per_epoch, epochs * per_epoch, per_epoch, recipe.stream_seed, recipe.train.rounds)
        for e in range(epochs)
    )
    refreshed = sum(recipe.method.refresh(moment) == "features" for moment in moments)
    online = epochs // settings.every_epochs if settings.every_epochs else 0
    embedded = sizes.train * refreshed + sizes.evaluated * (online + 1 + settings.baselines)
    reading = sizes.train * pace.reading / cores()
    classified = sizes.labelled * _classifiers(recipe, pace) * (1 + settings.baselines)
    return reading + epochs * per_epoch * step + (embedded * pace.embedding + classified) / workers


def _classifiers(recipe: Recipe, pace: Pace) -> float:
    """Seconds for each labelled sample of what classifiers see of it anew in each of their epochs."""
    settings, each = recipe.eval, 0.0
    if "linear" in settings.protocols and settings.linear_probe.augment is not None:
        each += settings.linear_probe.epochs * pace.embedding
    if "finetune" in settings.protocols:
        # a step of training sees each view once, fine-tuning one view
        tuned = pace.training / max(len(recipe.view_policies()), 1)
        for tuning in settings.tunings.values():
            pairs = len(tuning.lr) * len(tuning.head_times)
            rounds = tuning.epochs * (1 if pairs == 1 else 1 + 0.9 * pairs)
            each += tuning.share * rounds * (pace.embedding if tuning.frozen else tuned)
    return each


def sentence(recipe: Recipe, pace: Pace, sizes: Sizes, workers: int = 1) -> str:
    total = seconds(recipe, pace, sizes, workers)
    steps, step = sizes.train // recipe.train.batch_size, pace.training * recipe.train.batch_size
    said = (
        f"cost: about {duration(total)} ({recipe.total_epochs} epochs of {steps} steps of {step:.2g} s, and"
        " evaluation), by a few trial steps that count for nothing; the time left is corrected as it goes"
    )
    return said + (
        "; preset=quick would take less than 10 min" if total > BUDGETS["quick"] and not recipe.preset else ""
    )


# -------------------------------------------------------------------- presets


def fitted(recipe: Recipe, pace: Pace, sizes: Sizes, workers: int = 1) -> Recipe:
    """The recipe cut to the time of its preset: fewer epochs, their warm-up with them, and if need be fewer samples.

    Batch and queue become such as suit the samples.
    """
    if recipe.preset not in BUDGETS:
        return recipe
    budget, wanted = SPENT * BUDGETS[recipe.preset], recipe.train.epochs

    def takes(epochs: int, count: int) -> float:
        return seconds(_suited(_cut(recipe, epochs), count, workers), pace, sizes.of(count), workers)

    count = sizes.train
    epochs = _most(1, wanted, lambda e: takes(e, count) <= budget)
    if epochs < min(LEAST_EPOCHS, wanted):
        epochs = min(LEAST_EPOCHS, wanted)
        count = _most(min(LEAST_SAMPLES, count), count, lambda n: takes(epochs, n) <= budget)
        epochs = _most(1, epochs, lambda e: takes(e, count) <= budget)
    cut = _suited(_cut(recipe, epochs), count, workers)
    limit = count if count < sizes.train else cut.data.limit
    return cut.model_copy(update={"data": cut.data.model_copy(update={"limit": limit})})


def _suited(recipe: Recipe, count: int, workers: int) -> Recipe:
    """Batch and memory for so many samples, as the advice on them has it."""
    least = workers * recipe.train.accumulate
    batch = advice.fitting_batch(recipe, count) or recipe.train.batch_size
    batch = max(batch // least, 2) * least if batch % least else batch
    train = recipe.train.model_copy(update={"batch_size": batch})
    method = recipe.method.model_copy(update=advice.fitting_memory(recipe, count))
    return recipe.model_copy(update={"train": train, "method": method})


def changes(before: Recipe, after: Recipe) -> str:
    """What a preset has set, as it would be typed."""
    then, now = (flatten(r.model_dump(mode="json")) for r in (before, after))
    named = [f"{key}={now[key]}" for key in now if now[key] != then[key] and key != "preset"]
    return f"preset={before.preset}: {' '.join(named) or 'the recipe as it stands'}"


def _most(least: int, most: int, fits: Any) -> int:
    """The largest number that fits, or the least where none does; larger ones fit no better."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _cut(recipe: Recipe, epochs: int) -> Recipe:
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})})
    return shortened(changed, recipe.train.epochs)
