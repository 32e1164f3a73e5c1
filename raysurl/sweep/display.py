"""What a person sees while a sweep runs: how many trials are done, running and ended early, the best, the time left."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from raysurl.sweep.cells import Trial
from raysurl.sweep.space import Space
from raysurl.sweep.trial import EARLY, Outcome


@dataclass
class Display:
    """A bar on a terminal; a line per ended trial elsewhere. `earlier`: trials that had ended before this start."""

    space: Space
    total: int
    earlier: list[Outcome]
    concurrent: int
    console: Console
    _running: dict[str, float] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _walls: list[float] = field(default_factory=list)
    _best: tuple[float, str] | None = None
    _bar: Progress | None = None
    _task: TaskID | None = None

    def __enter__(self) -> Display:
        self._counts.update(outcome.state for outcome in self.earlier)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self.total, completed=len(self.earlier))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def started(self, trial: Trial) -> None:
        self._running[trial.id] = time.monotonic()
        self._show(line=False)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        began = self._running.pop(trial.id, None)
        if began is not None:
            self._walls.append(time.monotonic() - began)
        self._counts[outcome.state] += 1
        value = outcome.metrics.get(self.space.metric)
        if outcome.state == "finished" and value is not None and self._better(value):
            self._best = value, str(trial.cell)
        said = f"{self.space.metric} {value:.2f}" if value is not None else ""
        line = f"{outcome.state} in {outcome.seconds:.1f} s: {trial.cell}, seed {trial.seed}  {said}  {outcome.reason}"
        self.console.print(line.strip(), markup=False, highlight=False, soft_wrap=True)
        self._show()

    def _better(self, value: float) -> bool:
        if self._best is None:
            return True
        return (
            value > self._best[0]
            if self.space.objectives[self.space.metric] == "max"
            else value < self._best[0]
        )

    @property
    def done(self) -> int:
        return sum(self._counts.values())

    def summary(self) -> str:
        """`12 of 40 done (2 collapsed), 2 running, best 98.1 (τ=0.1), about 3 min left`."""
        early = ", ".join(f"{self._counts[state]} {state}" for state in EARLY if self._counts[state])
        best = f", best {self.space.metric} {self._best[0]:.2f} ({self._best[1]})" if self._best else ""
        return (
            f"{self.done} of {self.total} done{f' ({early})' if early else ''}, {len(self._running)} running{best}"
            f"{self._left()}"
        )

    def _left(self) -> str:
        remaining = self.total - self.done
        if not self._walls or not remaining:
            return ""
        seconds = remaining * sum(self._walls) / len(self._walls) / max(self.concurrent, 1)
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"

    def _show(self, *, line: bool = True) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=self.summary(), completed=self.done)
        elif line:
            self.console.print(self.summary(), markup=False, highlight=False, soft_wrap=True)
