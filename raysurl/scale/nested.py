"""A trial on several workers: Ray Train inside the trial, whose own process judges each epoch and reports to Tune."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray
from ray.actor import ActorHandle

from raysurl.recipe import Recipe
from raysurl.scale import data, joining
from raysurl.scale.cluster import Placement
from raysurl.scale.line import open_line
from raysurl.scale.train import RAY_FILES, fit
from raysurl.sweep.trial import Train, Watch

MARKS = 2, 2**24  # bytes of each worker's memory; 1 is what Tune holds for a trial's own process
LOOK_S = 0.2  # between two looks at whether the workers have ended
ENDING_S = (
    600  # that a pruned trial's workers may take to end, before Tune gives its process to another trial
)


def on_workers(prepared: data.Splits, placement: Placement) -> Train:
    """The training of a trial on so many workers, each of which reads `prepared`."""

    def train(recipe: Recipe, directory: Path, watch: Watch) -> None:
        joining.connect()  # connected it is: this sets what Ray Train reads from the environment
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(ENDING_S))
        placed = replace(placement, mark=random.SystemRandom().randrange(*MARKS))
        line = open_line(placed.mark)
        group = _in_thread(partial(fit, recipe, placed, prepared, directory, line=line))
        try:
            _follow(line, group, watch)
        finally:  # the watch raises to end the trial: CollapsedError, or SystemExit where Tune prunes it
            ray.get(line.close.remote())
            wait([group])
            line.end.remote()
            shutil.rmtree(directory / RAY_FILES, ignore_errors=True)
        group.result()

    return train


def _follow(line: ActorHandle, group: Future[None], watch: Watch) -> None:
    """Show the watch every epoch, in this thread, until the workers have ended."""
    coming = line.next_report.remote()
    while not group.done():
        ready, _ = ray.wait([coming], timeout=LOOK_S)
        if not ready:
            continue
        report = ray.get(coming)
        if report is None:
            watch.start()
        else:
            watch(*report)
        line.go_on.remote()
        coming = line.next_report.remote()


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """The thread is no reason for the process to stay, unlike one of an executor."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
