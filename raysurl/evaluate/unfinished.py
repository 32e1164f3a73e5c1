"""Long trainings of an evaluation, of detectors and of fine-tuned classifiers, that go on where they were interrupted.

Every EVERY_S seconds, and where the process is told to stop, rank 0 writes weights, optimizer and number of steps into
a file beside the results. The same command reads it, whatever ended the one before, `kill -9` too: a file is replaced
whole, and each step draws from its own number. It is named by the digest of what begins the training, so that another
network, other settings or other data begin anew. What ends within EVERY_S leaves no file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raysurl import distributed, stopping
from raysurl.errors import first_line
from raysurl.paths import whole

EVERY_S = 300.0
ENDING = ".unfinished.pt"

log = logging.getLogger(__name__)


class Unfinished:
    """Where trainings of one evaluation are kept until its results are written; `folder` None: nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.used: list[Path] = []

    def training(
        self, kind: str, said: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Training:
        """Model and optimizer as they begin, or as they were left; `said`: what it depends on besides the model, plain
        values, sections of a recipe and arrays.

        Every rank calls it.
        """
        if self.folder is None:
            return Training(None, model, optimizer)
        # of the first rank: norms may have seen other images on another
        name = distributed.broadcast_object(f"{kind}-{_digest(said, model)}{ENDING}")
        path = self.folder / name
        self.used.append(path)
        return Training(path, model, optimizer)

    def forget(self) -> None:
        """The results are written."""
        for path in self.used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class Training:
    """A model and its optimizer, `done` steps after their beginning."""

    def __init__(self, path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.model, self.optimizer, self.done = path, model, optimizer, 0
        self._began = self._written = time.monotonic()
        state = distributed.broadcast_object(None if path is None or distributed.rank() else _read(path))
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.done = int(state["done"])
            log.info("%s: goes on after step %d", self.path and self.path.name, self.done)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around all steps."""
        with stopping.saving(self._write):
            yield
        if time.monotonic() - self._began >= EVERY_S:
            self._write()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one step, which is done whole."""
        with stopping.held():
            yield
            self.done += 1
            if time.monotonic() - self._written >= EVERY_S:
                self._write()

    def _write(self) -> None:
        if self.path is None or distributed.rank():
            return
        state = {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        try:
            with whole(self.path) as partial:
                torch.save(state, partial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            log.warning(
                "%s could not be written (%s): an interruption would lose the last steps",
                self.path,
                first_line(error),
            )
        self._written = time.monotonic()


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a file; None where there is none, or it is none."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("done", "model", "optimizer")}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): its training begins anew", path, first_line(error))
        return None


def _digest(said: Mapping[str, Any], model: nn.Module) -> str:
    def plain(value: Any) -> str:
        return hashlib.sha256(value.tobytes()).hexdigest() if isinstance(value, np.ndarray) else repr(value)

    found = hashlib.sha256(json.dumps(said, sort_keys=True, default=plain).encode())
    for name, value in model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
