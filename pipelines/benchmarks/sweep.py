"""Sweeps on this machine: what a trial costs beside its training, and what running two at once gains.

`python pipelines/benchmark.py sweep [trials=16] [epochs=17]`: the same trials one at a time and as many at once as
there are cores, each in a process of its own that Tune uses again.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysurl.recipe import yaml_argument
from raysurl.scale import share, tune
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.search import Grid
from raysurl.sweep.space import space_from
from raysurl.sweep.trial import read_outcome

FIXED = {
    "train.schedule.warmup_epochs": 2,
    "eval.every_epochs": 0,
    "eval.protocols": ["knn"],
    "eval.baselines": False,
    "checkpoint.every_epochs": 5,
}


def main(arguments: Sequence[str]) -> None:
    given = dict(yaml_argument(a) for a in arguments)
    trials, epochs = int(given.get("trials", 16)), int(given.get("epochs", 17))
    measured = {}
    for concurrent in (1, os.cpu_count() or 1):
        measured[concurrent] = _measure(trials, epochs, concurrent)
        print(
            json.dumps(
                {"max_concurrent": concurrent, "load_before": os.getloadavg()[0], **measured[concurrent]}
            )
        )
    one, many = (m["seconds"] for m in measured.values())
    print(f"{trials} trials: {one / many:.2f} times as fast, {max(measured)} at a time as 1 at a time")


def _measure(trials: int, epochs: int, concurrent: int) -> dict[str, Any]:
    """Seconds from the first trial's start to the last one's end, and the overhead of all trials but the first."""
    space = space_from(
        {
            "name": "benchmark",
            "title": "benchmark",
            "recipe": "ressl/digits",
            "fixed": {**FIXED, "train.epochs": epochs},
            "axes": {"method.tau_teacher": [round(0.03 + 0.001 * i, 3) for i in range(trials)]},
            "seeds": [0],
        }
    )
    plan = make_plan(SweepRequest(space, "full"))
    directory = Path(tempfile.mkdtemp()) / "sweep"
    began = time.perf_counter()
    placed = share.check(plan, share.Resources(max_concurrent=concurrent))
    ray_s = time.perf_counter() - began
    starts: list[float] = []
    ends: list[float] = []
    stores: list[float] = []

    def ended(trial: object, outcome: object) -> None:
        ends.append(time.perf_counter())
        stores.append(tune.store_used())

    with sweep_directory.claim(directory, plan):
        tune.run(
            plan,
            Grid(list(plan.trials)),
            directory,
            placed,
            max_hours=None,
            started=lambda trial: starts.append(time.perf_counter()),
            ended=ended,
        )
    outcomes = [read_outcome(sweep_directory.trial_directory(directory, t)) for t in plan.trials]
    trained = [o.seconds for o in outcomes if o]
    shutil.rmtree(directory.parent)
    wall = ends[-1] - starts[0]
    # one process at a time: what lies between two ends beyond the training of the later trial
    between = (
        [b - a - s for a, b, s in zip(ends, ends[1:], trained[1:], strict=False)] if concurrent == 1 else []
    )
    return {
        "seconds": round(wall, 2),
        "ended": dict(Counter(o.state for o in outcomes if o)),
        "training_s_mean": round(statistics.fmean(trained), 3),
        "overhead_s_median": round(statistics.median(between), 3) if between else float("nan"),
        "first_trial_s": round(ends[0] - starts[0], 2),
        "ray_start_s": round(ray_s, 2),
        "store_mb_first_last": [round(stores[0] / 1e6, 2), round(stores[-1] / 1e6, 2)],
    }
