"""What is measured of a run's health while it trains, at the end of each epoch, besides what methods log.

health/update_share    how far the weights move in one step, as a share of their length: the largest of the steps in the
                       middle and at the end of an epoch, and of the first, second, fourth, eighth … of the run
health/teacher_motion  how far a moving-average teacher moved in an epoch over how far the student did, each as a share
                       of its length
health/queue_age       mean age of memory's vectors, in steps since they changed
health/queue_lag       the same in times of the steps that write all of them anew: below 1 where memory is fed
health/batch_mix       classes in a batch, as a share of those that a full shuffle has; without labels the spread of the
                       samples' positions in the data instead
health/input_mean, health/input_std   of pixels as the encoder sees them, without augmentation: 0 and 1 where
                       views.mean and views.std are those of the data
health/pixel_mean, health/pixel_std   of the same in [0, 1], before they are normalised

Weights are looked at by a few evenly spaced values of each tensor, memory by a few rows, so that a look costs one short
transfer. What the latest step cannot tell at the end of a run (rates have fallen by then) is kept as its largest value.
A checkpoint carries all of it, so that a run that is resumed says what it would have said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raysurl import distributed, health
from raysurl.data.source import Source
from raysurl.embed import images_alone, plain_images
from raysurl.errors import UnhealthyError
from raysurl.functional import evenly_spaced
from raysurl.memory.link import MemoryLink
from raysurl.method import Method
from raysurl.nets.ema import MomentumTeacher
from raysurl.recipe import Recipe
from raysurl.sampler import Plan, Request
from raysurl.train.saving import save
from raysurl.windows import classes_in_a_shuffle, classes_in_batches

if TYPE_CHECKING:
    from raysurl.train.trainer import Run

VALUES = 256  # looked at of each tensor of weights
ROWS = 256  # looked at of memory
IMAGES = 64  # whose pixels are looked at
BATCHES = 16  # whose spread is looked at
PATIENCE = 3  # epochs: a warm-up may pass through what is no fault where it ends
SETTLED = 0.2  # of a run, before which nothing is judged


@dataclass
class Examiner:
    """Of rank 0. `found`: what the report of the run is told; `state_dict` is that and what the next look is compared
    with."""

    found: dict[str, float] = field(default_factory=dict)
    _weights: dict[str, Tensor] = field(default_factory=dict)  # at the last look, on the CPU
    standing: dict[str, int] = field(default_factory=dict)  # epochs in a row in which that kind was found
    _rows: Tensor | None = None  # sums of memory's rows at the last look
    _age: Tensor | None = None  # steps since each changed
    _step: int = 0  # of the last look
    _moved: Tensor | None = None  # by the watched steps of this epoch, a share

    def begin(self, run: Run) -> None:
        """Before the first step of a run, or of its continuation."""
        if self._weights or run.record is None:
            return
        self._weights = _lengths_apart(run.method)
        self._rows, self._age = _look_at(run.memory), None

    @contextlib.contextmanager
    def watching(self, run: Run) -> Iterator[None]:
        """Around a step, some of which are measured. Nothing waits for the device."""
        per_epoch, done = run.plan.steps_per_epoch, run.step + 1
        # too large steps make weights so long within a few of them that later ones look small
        early = done & run.step == 0
        if run.record is None or not (early or run.step % per_epoch in (per_epoch // 2, per_epoch - 1)):
            yield
            return
        weights = _student(run.method)
        before = _values(weights)
        yield
        moved = (_values(weights) - before).norm() / before.norm()
        self._moved = moved if self._moved is None else torch.maximum(self._moved.to(moved), moved)

    def look(self, run: Run) -> dict[str, float]:
        """At the end of an epoch, on rank 0."""
        found = self._weights_moved(run.method)
        found |= self._memory_fed(run.memory, run.step - self._step, run.plan.batch_size)
        if "health/batch_mix" not in self.found and run.plan.graph is None:
            found |= batches(run.plan, run.loader.source, run.epochs_done)
        if "health/input_std" not in self.found:
            found |= inputs(run.recipe, run.loader.source)
        self._step = run.step
        for name, value in found.items():
            known = self.found.get(name, value) if name in health.LARGEST else value
            self.found[name] = max(known, value)
        return found

    def _weights_moved(self, method: Method) -> dict[str, float]:
        found = {}
        if self._moved is not None:
            found["health/update_share"] = float(self._moved)
            self._moved = None
        now, before = _lengths_apart(method), self._weights
        self._weights = now
        if "teacher" in now and "teacher" in before:
            shares = {name: float((now[name] - before[name]).norm() / before[name].norm()) for name in now}
            if shares["student"] > 0:
                found["health/teacher_motion"] = shares["teacher"] / shares["student"]
        return found

    def judge(self, run: Run, evaluated: dict[str, float]) -> tuple[list[str], list[str]]:
        """What has been wrong for PATIENCE epochs in a row, and which of it had not been before this one."""
        if run.epochs_done < SETTLED * run.recipe.total_epochs:
            return [], []
        alive = {"health/std": 1.0}  # as long as no evaluation says otherwise
        of_epoch = alive | health.combined(evaluated, run.tally.latest)
        signals = {**run.tally.memory, **self.found, **of_epoch}
        found = {said.partition(":")[0]: said for said in health.diagnose(signals)}
        waiting = {} if evaluated else {k: n for k, n in self.standing.items() if k in health.OF_EVALUATION}
        self.standing = waiting | {kind: self.standing.get(kind, 0) + 1 for kind in found}
        lasting = {kind: said for kind, said in found.items() if self.standing[kind] >= PATIENCE}
        return list(lasting.values()), [
            said for kind, said in lasting.items() if self.standing[kind] == PATIENCE
        ]

    def _memory_fed(self, memory: MemoryLink | None, steps: int, batch_size: int) -> dict[str, float]:
        now, before = _look_at(memory), self._rows
        self._rows = now
        if memory is None or now is None or before is None:
            return {}
        age = torch.zeros(len(now)) if self._age is None else self._age
        self._age = torch.where(now == before, age + steps, 0.0)
        mean = float(self._age.mean())
        keys = memory.keys_of_a_step or batch_size  # memory that nothing was ever sent to is as dead
        anew = memory.mirror.snapshot()["features"].shape[0] / keys
        return {"health/queue_age": mean, "health/queue_lag": mean / max(anew, 1.0)}

    def state_dict(self) -> dict[str, Any]:
        known = {"found": dict(self.found), "standing": dict(self.standing), "step": self._step}
        return known | {"weights": self._weights, "rows": self._rows, "age": self._age, "moved": self._moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found, self._weights, self._step = dict(state["found"]), state["weights"], int(state["step"])
        self.standing = dict(state["standing"])
        self._rows, self._age, self._moved = state["rows"], state["age"], state["moved"]


def examine(run: Run, evaluated: dict[str, float]) -> str:
    """What has been wrong for some epochs, on rank 0; recorded, and said once."""
    if not run.record:
        return ""
    run.record.write(run.step, run.examiner.look(run))
    lasting, new = run.examiner.judge(run, evaluated)
    for sentence in new:
        run.event(f"finding: {sentence}")
    return " ".join(lasting)


def stop_if_unhealthy(run: Run, said: str) -> None:
    """Every rank calls it; raises UnhealthyError, once the run's state is saved, where rank 0 has something to say."""
    said = distributed.broadcast_object(said)
    if said:
        save(run)
        run.writer.wait()
        raise UnhealthyError(
            f"stopped after epoch {run.epochs_done} of {run.recipe.total_epochs} (log.on_finding=stop): {said}"
            " Its state is saved: log.on_finding=say resume=true goes on with it"
        )


# -------------------------------------------------------------------- a few values of much


def _student(method: Method) -> list[Tensor]:
    """The matrices and kernels that learn: biases and norms may begin at zero, and have no length to compare with."""
    return [p.detach() for p in method.parameters() if p.requires_grad and p.dim() > 1]


def _values(weights: list[Tensor]) -> Tensor:
    return torch.cat([evenly_spaced(w.flatten(), VALUES).float() for w in weights])


def _lengths_apart(method: Method) -> dict[str, Tensor]:
    """Values of the student's weights, and of a moving-average teacher's where there is one, on the CPU."""
    teachers = [m.net for m in method.modules() if isinstance(m, MomentumTeacher)]
    of = {"student": _student(method)}
    if teachers:
        of["teacher"] = [p.detach() for net in teachers for p in net.parameters() if p.dim() > 1]
    return {name: _values(weights).cpu().clone() for name, weights in of.items() if weights}


def _look_at(memory: MemoryLink | None) -> Tensor | None:
    """Sums of some of memory's rows, on the CPU."""
    features = None if memory is None else memory.mirror.snapshot().get("features")
    return None if features is None else evenly_spaced(features, ROWS).double().sum(1).cpu()


# -------------------------------------------------------------------- the data


def batches(plan: Plan, source: Source, epochs_done: int) -> dict[str, float]:
    """`health/batch_mix` of the epoch that is done."""
    order, labels = plan.order(epochs_done - 1), source.labels
    if labels is not None and (known := labels[order][labels[order] >= 0]).size:
        whole = classes_in_a_shuffle(np.bincount(known), len(order), plan.batch_size)
        return {"health/batch_mix": classes_in_batches(order, labels, plan.batch_size) / max(whole, 1e-9)}
    steps = len(order) // plan.batch_size
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, BATCHES)).astype(int))
    if not len(chosen):
        return {}
    rows = [order[i * plan.batch_size : (i + 1) * plan.batch_size] for i in chosen]
    return {"health/batch_mix": float(np.mean([row.std() for row in rows]) / max(order.std(), 1e-9))}


def inputs(recipe: Recipe, source: Source) -> dict[str, float]:
    """`health/input_…` and `health/pixel_…` of evenly spaced images; vectors are not normalised by views."""
    readable = np.flatnonzero(source.readable)
    chosen = readable[np.arange(min(IMAGES, len(readable))) * len(readable) // min(IMAGES, len(readable))]
    (images,) = source.batches([Request(0, 0, chosen)], images_alone)
    if isinstance(images, Tensor) and images.dim() == 2:
        return {}
    x = plain_images(recipe, images, torch.device("cpu")).double()
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (recipe.views.mean, recipe.views.std)
    )
    own = x * std + mean
    values = {"input": x, "pixel": own}
    return {
        f"health/{n}_{k}": float(v)
        for n, y in values.items()
        for k, v in (("mean", y.mean()), ("std", y.std()))
    }
