"""Work one step ahead of its consumer, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_S = 0.1  # how soon an abandoned producer notices
_LEAVE_S = 10.0  # how long to wait for it before leaving it behind


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, made by a thread that runs at most `depth` ahead.

    An exception of the producer is raised where its item would have come. When the consumer stops early the
    producer stops too and `items` is closed.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stopped), daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join(_LEAVE_S)


def _produce(items: Iterator[Any], ready: queue.Queue[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, (item, None), stopped):
                break
        else:
            _put(ready, (None, StopIteration()), stopped)
    except BaseException as error:  # it belongs to the consumer, whatever it is
        _put(ready, (None, error), stopped)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(ready: queue.Queue[Any], entry: Any, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(entry, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False
