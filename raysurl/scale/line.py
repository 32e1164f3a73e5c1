"""Between a trial and its workers: what rank 0 says of each epoch, and the trial's answer, whether to go on.

Rank 0 waits for the answer and passes it to the other ranks, so that a trial that is to end early ends after the very
epoch that decided it, as a trial of one process does. Ray Train's own reports come late, and some of them never.

The line outlives the trial's process by a moment, to give back what that leaves: Ray keeps the placement group of a
worker group until the driver ends, and Ray Train's own cleaner needs a dashboard and a machine with no other Ray. On a
cluster that the trials fill, the next worker group would wait for those CPUs for ever.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

EpochReport = (
    tuple[dict[str, Any], dict[str, float]] | None
)  # an epoch's report and its last step; None: training starts
LOOK_S = 1.0  # between two looks at whether the trial's process lives
SETTLE_S = 10  # that what a dead process has left behind may still ask for resources


class ReportLine:
    """All calls but `next_report` and `report` return at once. `trial`: the actor whose death it waits for, if any."""

    def __init__(self, trial: ActorHandle | None, mark: int) -> None:
        self._reports: asyncio.Queue[tuple[EpochReport, asyncio.Future[bool]]] = asyncio.Queue()
        self._unanswered: asyncio.Future[bool] | None = None
        self._open = True
        self._ended = threading.Event()
        # from the constructor, which runs even where the trial has died before it could call anything
        threading.Thread(target=_guard, args=(trial, mark, self._ended), daemon=True).start()

    async def report(self, what: EpochReport) -> bool:
        """By rank 0; returns whether to go on. A rank 0 that is replaced while it waits is answered in vain."""
        if not self._open:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._reports.put((what, answer))
        return await answer

    async def next_report(self) -> EpochReport:
        """By the trial: the next thing said, to be answered before the next call."""
        what, self._unanswered = await self._reports.get()
        return what

    async def go_on(self) -> None:
        _set(self._unanswered, True)

    async def close(self) -> None:
        """No to what is not yet answered, and to all that will be said."""
        self._open = False
        _set(self._unanswered, False)
        while not self._reports.empty():
            _set(self._reports.get_nowait()[1], False)

    async def end(self) -> None:
        """The trial's training is over, well or not: its process may be ending with it."""
        self._ended.set()


def _guard(trial: ActorHandle | None, mark: int, ended: threading.Event) -> None:
    """Wait for the end of the trial, or of its process; remove the placement groups whose bundles bear the mark."""
    asked = None
    while not ended.wait(LOOK_S):
        if trial is None:
            continue
        asked = asked or trial.__ray_ready__.remote()  # answered between two of Tune's calls
        if not ray.wait([asked], timeout=0)[0]:
            continue
        try:
            ray.get(asked)
        except ActorDiedError:
            break
        except RayActorError:
            pass  # not to be reached just now
        asked = None
    for _ in range(int(SETTLE_S / LOOK_S)):
        _remove(mark)
        time.sleep(LOOK_S)
    ray.kill(ray.get_runtime_context().current_actor)


def _remove(mark: int) -> None:
    for name, group in placement_group_table().items():
        marked = any(bundle.get("memory") == mark for bundle in group["bundles"].values())
        if marked and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _set(answer: asyncio.Future[bool] | None, value: bool) -> None:
    if answer is not None and not answer.done():
        answer.set_result(value)


def open_line(mark: int) -> ActorHandle:
    """The line of the trial in this process. It takes no CPU share: it waits."""
    context = ray.get_runtime_context()
    trial = context.current_actor if context.get_actor_id() else None  # a driver leaves nothing behind
    options = {"num_cpus": 0, "lifetime": "detached", "scheduling_strategy": "DEFAULT"}
    return ray.remote(ReportLine).options(**options).remote(trial, mark)
