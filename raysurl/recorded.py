"""What a step is told of the progress where it is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class NotRecordableError(RuntimeError):
    """A step cannot be recorded once and replayed; the message says why, and the run goes on without."""


@dataclass(frozen=True)
class Recorded:
    """In place of `method.Progress` in a step that is recorded once and replayed many times (raysurl.recording).

    `values` name -> 0-d tensor, filled before each replay with what `Method.schedule` says then; `phase` is that of
    the recording. Whatever else is asked of it would be frozen into all later steps, so it raises NotRecordableError.
    """

    values: Mapping[str, Tensor]
    phase: Hashable

    def __getattr__(self, name: str) -> Any:
        raise NotRecordableError(
            f"the step reads progress.{name}; a number belongs into Method.schedule and a case into Method.phase"
        )
