"""What a method is: single-device code that maps views and memory to a loss.

Letters used throughout: B global batch, b this device's part of it, C, H, W image, D embedding, K queue
size, N samples in the data set, V views whose keys are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from raysurl.recipe.method_config import MethodConfig, TeacherKind, available, method_class

__all__ = [
    "Answer",
    "Batch",
    "Build",
    "FrozenTeacher",
    "Method",
    "MethodConfig",
    "Output",
    "Progress",
    "Push",
    "Snapshot",
    "TeacherKind",
    "available",
    "detached",
    "load",
]


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


class NotRecordableError(RuntimeError):
    """A step cannot be recorded once and replayed; the message says why, and the run goes on without."""


@dataclass(frozen=True)
class Recorded:
    """In place of `Progress` in a step that is recorded once and replayed many times (raysurl.train.recording).

    `values` name -> 0-d tensor, filled before each replay with what `Method.schedule` says then; `phase` is that of
    the recording. Whatever else is asked of it would be frozen into all later steps, so it raises NotRecordableError.
    """

    values: Mapping[str, Tensor]
    phase: Hashable

    def __getattr__(self, name: str) -> Any:
        raise NotRecordableError(
            f"the step reads progress.{name}; a number belongs into Method.schedule and a case into Method.phase"
        )


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


@dataclass(frozen=True)
class Build:
    """What a method's constructor is given: the encoder and how to make more of the same kind."""

    encoder: nn.Module  # (b, C, H, W) -> (b, dim)
    dim: int
    make_norm: Callable[[int], nn.Module]  # the run's batch norm for vectors (b, D)
    shuffle: bool  # norm=shuffle: key encoders see their batch shuffled over the ranks
    num_samples: int
    batch_size: int  # of the global batch
    seed: int
    teacher: FrozenTeacher | None = None  # where the method learns from one, see `MethodConfig.learns_from`


class Method(nn.Module):
    """Base of all methods. `forward` returns the loss, so DDP wraps it unchanged.

    What follows from the settings alone (views, memory, from whom it learns) its Config answers; a subclass's
    constructor takes (config, build).
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    encoder: nn.Module  # what is kept, exported and evaluated

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

    def before_update(self, progress: Moment) -> None:
        """Called when the gradients of a step are complete, before the optimizer sees them (frozen parameters)."""

    def after_step(self, progress: Moment) -> None:
        """Called after each optimizer step, without gradient (EMA updates)."""


def load(name: str) -> type[Method]:
    """The class of the method of this name. Raises InputError, which names the methods there are."""
    found: type[Method] = method_class(name)
    return found


def detached(**terms: Tensor) -> dict[str, Tensor]:
    """Named scalars for `Output.logs`, cut from the graph."""
    return {name: term.detach() for name, term in terms.items()}
