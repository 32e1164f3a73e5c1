"""The group of workers, without processes that Ray starts beside it and that do nothing for a run.

Each is an interpreter that looks for signals a hundred times a second, for which it takes a hundredth of a slow core,
and a step waits for the last of its threads (Ray 2.60).
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train.torch import TorchTrainer

from raysurl.scale import joining

DATASETS, PLACES = "DatasetsCallback", "PlacementGroupCleanerCallback"
STATISTICS = "datasets_stats_actor", "_dataset_stats_actor"  # its name, and its namespace


class Group(TorchTrainer):
    """Ray Train's group without what deals out its datasets, of which it is given none, and, in a Ray of one run,
    without what gives back the workers' places where a controller has died."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = {DATASETS, PLACES} if joining.of_one_run() else {DATASETS}
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]


def end_statistics() -> None:
    """Ends what keeps Ray Data's statistics for a dashboard, in a Ray of one run, which has none; Ray Data starts
    another when it is used again."""
    if joining.of_one_run():
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(*STATISTICS))
