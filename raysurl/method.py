"""What a method is: single-device code that maps views and memory to a loss.

Letters used throughout: B global batch, b this device's part of it, C, H, W image, D embedding, K queue
size, N samples in the data set, V views whose keys are remembered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raysurl.errors import InputError
from raysurl.recorded import Recorded


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Every schedule (lr, EMA, loss weights) is a pure function of it."""

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int = 0
    rounds: int = 1  # equal parts of the run (train.rounds); a curriculum begins anew with each

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def steps_per_round(self) -> int:
        return self.total_steps // self.rounds

    @property
    def round(self) -> int:
        return min(self.step // max(self.steps_per_round, 1), self.rounds - 1)

    @property
    def step_in_round(self) -> int:
        return self.step - self.round * self.steps_per_round


Moment = Progress | Recorded
"""Where a step stands: what `Method.scheduled` and `Method.in_phase` take."""


@dataclass(frozen=True)
class Batch:
    """`index` (b,) int64 sample indices; `views` name -> (b, C, H, W) or (b, D) float. No labels."""

    index: Tensor
    views: Mapping[str, Tensor]


Snapshot = Mapping[str, Tensor]
"""The tensors of memory that one step reads; empty for a method without memory."""


@dataclass(frozen=True)
class Push:
    """What a step adds to memory: `keys` (V, b, D) detached, `index` (b,) their sample indices."""

    keys: Tensor
    index: Tensor


@dataclass(frozen=True)
class Output:
    """`loss` scalar, mean over the batch; `logs` named terms and signals, scalars, detached."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    push: Push | None = None


Answer = dict[str, Tensor]
"""What the record of memory says to one global batch: tensors (B, …), a row per position."""


class Memory(Protocol):
    """What a method remembers between steps: plain Python, run in-process or inside the memory actor.

    `mirror` is a copy on a device of what every step reads, kept equal by equal pushes. `answers`: whether a step
    also reads what only the whole memory can tell, `answer` to the indices of its batch.
    """

    answers: ClassVar[bool]

    def push(self, keys: Tensor, index: Tensor) -> None:
        """Add keys (V·B, D) of the global batch, ordered by (view, position), with their indices (V·B,)."""

    def snapshot(self) -> Snapshot: ...

    def mirror(self, device: torch.device) -> Memory: ...

    def answer(self, index: Tensor, step: int) -> Answer:
        """For the global batch `index` (B,) of a step; random picks are a function of (seed, step)."""

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        """Rebuild from features (N, D) of the whole data set, in index order; None where the method embeds nothing."""

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """Signals `health/…` for the record; labels (N,), −1 = none, only judge what memory found without them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Taught = Literal["no", "any", "network", "labels"]
"""From whom a method learns: no teacher, any, one that sees views, or the labels (a supervised reference)."""


class FrozenTeacher(Protocol):
    """A trained network that a student learns from. No `nn.Module`, so that a method that holds it neither trains nor
    stores it, and DDP does not see it. Implementations: raysurl.teachers.
    """

    @property
    def dim(self) -> int:
        """Width of its embeddings."""

    @property
    def on_host(self) -> bool:
        """Whether `teach` works on the host, so that a step with it cannot be recorded."""

    def embed(self, x: Tensor) -> Tensor:
        """Views (b, C, H, W), normalised as the student's, -> embeddings (b, dim) fp32 without gradient.

        Raises InputError where they are precomputed.
        """

    def teach(self, batch: Batch, view: str) -> Batch:
        """The batch with its embeddings (b, dim) as the view `teacher`: of `view`, or with teacher.view=plain of the
        samples without augmentation.
        """


class MethodConfig(BaseModel):
    """Base of a method's settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def for_data(self, name: str, path: str | None, limit: int | None) -> Self:
        """These settings for the data `data.name`, `data.path`, where some are to be found there."""
        return self

    def for_teacher(self, dim: Callable[[], int]) -> Self:
        """These settings for the recipe's teacher, whose embeddings have `dim()` values, where some follow from it."""
        return self


@dataclass(frozen=True)
class Build:
    """What a method's constructor is given: the encoder and how to make more of the same kind."""

    encoder: nn.Module  # (b, C, H, W) -> (b, dim)
    dim: int
    make_norm: Callable[[int], nn.Module]  # the run's batch norm for vectors (b, D)
    shuffle: bool  # norm=shuffle: key encoders see their batch shuffled over the ranks
    num_samples: int
    seed: int
    teacher: FrozenTeacher | None = None  # where the method takes one, see `Method.takes_teacher`


class Method(nn.Module):
    """Base of all methods. `forward` returns the loss, so DDP wraps it unchanged."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    couples_batch: ClassVar[bool] = False  # the loss is not a mean of per-sample terms
    staleness: ClassVar[int] = 0  # updates that a step's memory may lag behind, unless the recipe says
    remembers_samples: ClassVar[bool] = False  # memory's `features` (N, D) has a row per sample index
    clusters_samples: ClassVar[bool] = False  # memory groups the samples, see `clusters`

    encoder: nn.Module  # what is kept, exported and evaluated

    @classmethod
    def views(cls, config: Any) -> dict[str, str]:
        """View name -> name of its default augmentation policy (raysurl.views.POLICIES)."""
        raise NotImplementedError

    @classmethod
    def check(cls, config: Any, num_samples: int) -> None:
        """Raises InputError where these settings cannot be of so many samples. Called before anything starts."""

    @classmethod
    def memory(cls, config: Any, *, num_samples: int, seed: int) -> Memory | None:
        """Build the method's memory; None for a method that remembers nothing."""
        return None

    @classmethod
    def refreshes(cls, config: Any, progress: Progress) -> bool:
        """Whether memory is rebuilt from the whole data set before the epoch that starts at `progress`."""
        return False

    @classmethod
    def refresh_embeds(cls, config: Any) -> bool:
        """Whether that takes the features of the whole data set, or only what memory holds."""
        return True

    @classmethod
    def has_graph(cls, config: Any) -> bool:
        """Whether memory holds a graph of the samples, as train.sampler=neighbours needs it."""
        return False

    @classmethod
    def neighbours(cls, state: Mapping[str, Any]) -> NDArray[np.int64]:
        """Memory's state -> the neighbours (N, k) of each sample in its graph, best first, −1 = no further one."""
        raise NotImplementedError

    @classmethod
    def clusters(cls, state: Mapping[str, Any]) -> NDArray[np.int64] | None:
        """Memory's state -> cluster labels (levels, N) of all samples, finest first; None as long as there are none."""
        raise NotImplementedError

    @classmethod
    def largest_batch(cls, config: Any) -> int | None:
        """The most samples that one global batch may have; None where nothing grows faster than the batch."""
        return None

    @classmethod
    def takes_teacher(cls, config: Any) -> Taught:
        """Whether the recipe must name a frozen teacher, and whether that must see views (teacher.view=same)."""
        return "no"

    @property
    def embedder(self) -> nn.Module:
        """The network (b, C, H, W) -> (b, D) whose features of the whole data set `Memory.refresh` is given."""
        return self.encoder

    def schedule(self, progress: Progress) -> dict[str, float]:
        """Numbers that change from step to step (EMA momentum, weights of terms), by name; read by `scheduled`."""
        return {}

    def phase(self, progress: Progress) -> Hashable:
        """What changes the form of a step, such as a term that is left out at first; read by `in_phase`."""
        return None

    def runs_eagerly(self) -> str | None:
        """Why a step with these settings does work on the host and cannot be recorded; None where it can."""
        frozen: FrozenTeacher | None = getattr(self, "frozen", None)
        return "the teacher's embeddings are read on the host" if frozen and frozen.on_host else None

    def scheduled(self, progress: Moment) -> Mapping[str, float | Tensor]:
        """`schedule` at this step: numbers, or in a recorded step the tensors that hold them."""
        return progress.values if isinstance(progress, Recorded) else self.schedule(progress)

    def in_phase(self, progress: Moment) -> Any:
        """`phase` at this step."""
        return progress.phase if isinstance(progress, Recorded) else self.phase(progress)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        """Of the progress only `scheduled` and `in_phase` may be used, unless `runs_eagerly` says otherwise."""
        raise NotImplementedError

    def after_step(self, progress: Moment) -> None:
        """Called after each optimizer step, without gradient (EMA updates)."""


def available() -> list[str]:
    """Names of all methods: the modules of raysurl.methods."""
    import raysurl.methods

    return sorted(m.name for m in pkgutil.iter_modules(raysurl.methods.__path__))


def load(name: str) -> type[Method]:
    """The method class of module `raysurl.methods.<name>`; InputError names the methods there are."""
    if name not in available():
        raise InputError(f"method.name={name!r} is not a method; choose one of {', '.join(available())}")
    module = importlib.import_module(f"raysurl.methods.{name}")
    (cls,) = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    return cls


def detached(**terms: Tensor) -> dict[str, Tensor]:
    """Named scalars for `Output.logs`, cut from the graph."""
    return {name: term.detach() for name, term in terms.items()}
