"""What a person sees while a run works: the tail of metrics.jsonl as a progress bar.

The bar reads the run's record instead of being told by the trainer, so it is the same for a local run, for Ray
workers on other nodes, and for a run that starts again after a failure.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from raysurl.metrics import line_of
from raysurl.report import notebook
from raysurl.report.run import duration

POLL_S = 0.3
PLAIN_EVERY_S = 5.0  # without a terminal (a log file, a job's output) a line now and then


@contextlib.contextmanager
def watching(run_dir: Path, console: Console | None = None) -> Iterator[None]:
    """Show the run in `run_dir` until the block ends, also if it ends by an error."""
    console = console or Console()
    show = notebook.beginning() if console.is_jupyter else _bar if console.is_terminal else _lines
    with following(run_dir, lambda lines: show(lines, console)):
        yield


@contextlib.contextmanager
def following(run_dir: Path, read: Callable[[Iterator[dict[str, Any]]], None]) -> Iterator[None]:
    """`read` is given, in another thread, the lines that are added to the run's record until the block ends."""
    path, done = run_dir / "metrics.jsonl", threading.Event()
    known = set(path.read_bytes().split(b"\n")) if path.exists() else set()  # of the run that is continued
    thread = threading.Thread(target=read, args=(follow(path, done, known),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def announce(sentence: str) -> None:
    """Say what is done before there is a run directory whose record could say it."""
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)


def _bar(lines: Iterator[dict[str, Any]], console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)
        for line in lines:
            _show(bar, task, line, console)


def _show(bar: Progress, task: TaskID, line: dict[str, Any], console: Console) -> None:
    if "event" in line:
        console.print(f"[dim]step {line['step']}:[/dim] {escape(line['event'])}", highlight=False)
    if total := line.get("total_steps"):
        bar.update(task, total=total)
    if "train/loss" in line:
        bar.update(task, completed=line["step"] + 1)
    if "speed/images_per_s" in line:
        bar.update(task, description=_summary(line))
    if evaluated := _evaluation(line):
        console.print(f"[dim]step {line['step']}:[/dim] {evaluated}", highlight=False)


def _lines(lines: Iterator[dict[str, Any]], console: Console) -> None:
    last, total, pace = 0.0, 0, _Pace()
    for line in lines:
        total = line.get("total_steps", total)
        if "total_steps" in line or ("event" in line and not pace.warm):
            pace.begin(line["step"])
        if text := line.get("event") or _evaluation(line):
            console.print(f"step {line['step']}: {text}", markup=False, highlight=False, soft_wrap=True)
        left = pace.left(line["step"] + 1, total) if "speed/images_per_s" in line else ""
        if "speed/images_per_s" in line and time.monotonic() - last > PLAIN_EVERY_S:
            last = time.monotonic()
            console.print(
                f"step {line['step'] + 1}/{total or '?'}: {_summary(line)}{left}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


class _Pace:
    """The time left by what the steps have taken since the first of them, or for that one, since the run began."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        self.since, self.warm = (step, time.monotonic()), False

    def left(self, step: int, total: int) -> str:
        """`step` of `total` are done."""
        now, (begun, since) = time.monotonic(), self.since
        if not self.warm:
            self.since, self.warm = (step, now), True
        if step <= begun or not total:
            return ""
        return f"  {duration((total - step) * (now - since) / (step - begun))} left"


def _summary(line: dict[str, Any]) -> str:
    return (
        f"epoch {line['epoch']:.1f}  loss {line['train/loss']:.4f}  {line['speed/images_per_s']:.0f} images/s"
        f"  data wait {line['speed/data_wait']:.0%}"
    )


def _evaluation(line: dict[str, Any]) -> str:
    found = {name: value for name, value in line.items() if name.startswith("eval/")}
    return "  ".join(f"{name} {value:.2f}" for name, value in found.items())


def follow(path: Path, done: threading.Event, seen: set[bytes]) -> Iterator[dict[str, Any]]:
    """Whole lines as they are appended, each once, though a resumed run rewrites the file with what it keeps."""
    offset, inode, pending = 0, None, b""
    while True:
        finished = done.is_set()
        with contextlib.suppress(OSError):  # not there yet, or no more: the run itself says so
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino != inode:
                    offset, inode, pending = 0, os.fstat(file.fileno()).st_ino, b""
                file.seek(offset)
                data = file.read()
            offset += len(data)
            *whole, pending = (pending + data).split(b"\n")
            for text in whole:
                line = None if text in seen else line_of(text)
                if line is not None:
                    seen.add(text)
                    yield line
        if finished:
            return
        done.wait(POLL_S)
