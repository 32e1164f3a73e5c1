"""Functions that hear of a run while it works, and may stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raysurl import metrics, stopping
from raysurl.report.progress import following

Values = dict[str, Any]
Callback = Callable[[Values], object]


class StopRun(Exception):  # noqa: N818 (a wish, no error)
    """Raised by a callback: the run ends where it stands, is saved, and can be resumed."""


class Callbacks:
    """Sorts the lines of a run's record into steps, epochs and evaluations, and calls who asked for them.

    A callback that raises StopRun or returns True has the run stopped; one that fails has it stopped too, and `error`
    is what it raised. Where the last step is done there is nothing to stop.
    """

    def __init__(
        self, epochs: int, on_step: Callback | None, on_epoch: Callback | None, on_evaluation: Callback | None
    ) -> None:
        self.on_step, self.on_epoch, self.on_evaluation = on_step, on_epoch, on_evaluation
        self.epochs, self.total = epochs, 0
        self.run_dir: Path | None = None
        self.stopped = False
        self.error: Exception | None = None
        self._losses: list[float] = []

    def __call__(self, line: Values) -> None:
        self.total = line.get("total_steps", self.total)
        if self.stopped or "event" in line:
            return
        if "train/loss" in line:
            done = line["step"] + 1
            self._tell(self.on_step, line, done)
            self._losses.append(line["train/loss"])
            per_epoch = self.total // self.epochs
            if per_epoch and done % per_epoch == 0 and not self.stopped:
                self._epoch(done, done // per_epoch)
        elif any("/" in name and not name.startswith("health/level") for name in line):
            self._tell(self.on_evaluation, line, line["step"])

    def _epoch(self, done: int, epoch: int) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._losses = []
        self._tell(
            self.on_epoch, {"epoch": epoch, "epochs": self.epochs, "step": done, "train/loss": loss}, done
        )

    def _tell(self, callback: Callback | None, values: Values, done: int) -> None:
        if callback is None:
            return
        try:
            answer = callback(dict(values))
            wish = isinstance(answer, bool | np.bool_) and bool(answer)
        except StopRun:
            wish = True
        except Exception as error:
            self.error = error
            wish = True
        if wish and (done < self.total or self.error) and self.run_dir is not None:
            self.stopped = True
            stopping.ask(self.run_dir, stopping.SIGNALS[0])


@contextlib.contextmanager
def heard(callbacks: Callbacks, run_dir: Path, runtime: str) -> Iterator[None]:
    """The callbacks hear of the run in the block: in this thread as the trainer of this process writes its lines, or,
    where workers of Ray write them, in another thread a moment later."""
    callbacks.run_dir = run_dir
    if runtime == "local":
        token = metrics.listener.set(callbacks)
        try:
            yield
        finally:
            metrics.listener.reset(token)
        return

    def tell(lines: Iterator[Values]) -> None:
        for line in lines:
            callbacks(line)

    with following(run_dir, tell):
        yield
