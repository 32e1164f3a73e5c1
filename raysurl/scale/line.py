"""Between a trial and its workers: what rank 0 says of each epoch, and the trial's answer, whether to go on.

Rank 0 waits for the answer and passes it to the other ranks, so that a trial that is to end early ends after the very
epoch that decided it, as a trial of one process does. Ray Train's own reports come late, and some of them never.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle

Said = (
    tuple[dict[str, Any], dict[str, float]] | None
)  # an epoch's report and its last step; None: training starts


class Line:
    """Held by the trial and gone with it. All calls but `hear` and `say` return at once."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[tuple[Said, asyncio.Future[bool]]] = asyncio.Queue()
        self._unanswered: asyncio.Future[bool] | None = None
        self._open = True

    async def say(self, what: Said) -> bool:
        """By rank 0; returns whether to go on. A rank 0 that is replaced while it waits is answered in vain."""
        if not self._open:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._said.put((what, answer))
        return await answer

    async def hear(self) -> Said:
        """By the trial: the next thing said, to be answered before the next call."""
        what, self._unanswered = await self._said.get()
        return what

    async def go_on(self) -> None:
        _set(self._unanswered, True)

    async def close(self) -> None:
        """No to what is not yet answered, and to all that will be said."""
        self._open = False
        _set(self._unanswered, False)
        while not self._said.empty():
            _set(self._said.get_nowait()[1], False)


def _set(answer: asyncio.Future[bool] | None, value: bool) -> None:
    if answer is not None and not answer.done():
        answer.set_result(value)


def open_line() -> ActorHandle:
    """It takes no CPU share: it waits."""
    return ray.remote(num_cpus=0)(Line).remote()
