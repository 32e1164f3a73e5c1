"""Ctrl-C and SIGTERM: one exception, raised where nothing is half done, and what a person is told then.

In the process that a person started, `signals` turns both into `StoppedError`. What must not be cut in two stands under
`held`: the exception comes at its end. Trainers of other processes are asked by a file in their run directory (`ask`),
which rank 0 sees between two blocks of steps.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 1.0  # some senders signal the process and then its group: the same wish, not impatience
SAVE_S = 60.0  # that processes which were asked to stop may take to save
FILE = ".stop"


class StoppedError(KeyboardInterrupt):
    """A person or a scheduler wants the work to end. `how`: one clause on how to go on."""

    def __init__(self, signum: int, how: str = "") -> None:
        super().__init__(signum)
        self.signum, self.how = signum, how

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as a shell has it."""
        return 128 + self.signum

    def __str__(self) -> str:
        by = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"stopped by {by}; {self.how or 'nothing was written, start it again'}"


class _Signals:
    """What has been asked of this process. Handlers run in its main thread alone."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self.held = 0
        self.handled: list[int] = []
        self.last_words: list[Callable[[], None]] = []

    def handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.since = self.asked is not None, self.since or time.monotonic()
        if again and time.monotonic() - self.since < AGAIN_S:
            return
        self.asked = self.asked or signum
        if not self.held or again:  # a second one does not wait
            raise StoppedError(self.asked)


_signals = _Signals()


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Both signals raise StoppedError in this block. One that the process was started to ignore stays ignored."""
    if threading.current_thread() is not threading.main_thread() or _signals.handled:
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    _signals.asked, _signals.since, _signals.held = None, 0.0, 0
    _signals.handled = [s for s in SIGNALS if before[s] != signal.SIG_IGN]
    renew()
    try:
        yield
    finally:
        _signals.handled, _signals.asked = [], None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def renew() -> None:
    """Take the signals back from a library that took them."""
    if threading.current_thread() is threading.main_thread():
        for signum in _signals.handled:
            signal.signal(signum, _signals.handle)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """What is done in this block is done whole: a signal that comes meanwhile is raised at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals.held += 1
    try:
        yield
    finally:
        _signals.held -= 1
    if _signals.asked and _signals.handled and not _signals.held:
        raise StoppedError(_signals.asked)


@contextlib.contextmanager
def saving(save: Callable[[], None]) -> Iterator[None]:
    """`save` is called, whole, when the block is stopped; a second signal ends it."""
    try:
        yield
    except StoppedError as stop:
        _signals.held += 1
        try:
            save()
        finally:
            _signals.held -= 1
        raise stop from None


def came() -> int | None:
    """The signal that has come to this process, if one has."""
    return _signals.asked


def at_exit(leave: Callable[[], None]) -> None:
    """Called when the process ends by a signal, which no `atexit` function sees."""
    _signals.last_words.append(leave)


def end(code: int) -> NoReturn:
    """End the process now: threads that still work on something, and libraries' own ends, are not waited for."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    for leave in _signals.last_words:
        with contextlib.suppress(Exception):
            leave()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


# -------------------------------------------------------------------- other processes


def ask(directory: Path, signum: int) -> None:
    """Ask whoever trains in a run directory to save and stop."""
    with contextlib.suppress(OSError):  # a full disk: it is ended without having saved
        (directory / FILE).write_text(str(signum))


def asked(directory: Path) -> int | None:
    """The signal for which the trainer in a run directory is to stop."""
    try:
        text = (directory / FILE).read_text()
    except OSError:
        return None
    return int(text) if text.isdigit() else int(signal.SIGTERM)


def forget(directory: Path) -> None:
    """A new start: what was asked of the one before is over."""
    with contextlib.suppress(OSError):
        (directory / FILE).unlink(missing_ok=True)


def aside(work: Callable[[], object], on_stop: Callable[[int], object], patience_s: float = SAVE_S) -> None:
    """Do the work in a thread, so that this one hears of signals, and raise what it raises.

    Raises StoppedError on a signal, once `on_stop` was called with its number and the work has ended, or has taken
    `patience_s`; a second signal does not wait.
    """
    ended = threading.Event()  # joining a thread in an exception's way takes it for ended (CPython 3.11)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        ended.set()

    try:
        with held():  # started or not: never in between
            threading.Thread(target=run, daemon=True).start()
        while not ended.wait(0.2):
            pass
    except StoppedError as stop:
        on_stop(stop.signum)
        ended.wait(patience_s)
        raise
    if raised:
        raise raised[0]


# -------------------------------------------------------------------- words


def command_line(name: str, arguments: Sequence[str]) -> str:
    """How a person starts a command, in the way in which this process was started."""
    script = sys.argv[0]
    if script.endswith(f"{name}.py"):
        words = ["python", script]
    elif script.endswith("__main__.py"):
        words = ["python", "-m", "raysurl", name]
    else:
        words = ["raysurl", name]
    return shlex.join([*words, *arguments])
