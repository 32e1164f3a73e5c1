"""One atomic save and load of everything a run needs to go on.

A checkpoint is a directory `checkpoints/step-00000123/` with `state.pt` and `manifest.json` (size and SHA-256 of the
state, step, method, epoch metric). It is written beside its final name, synced, and renamed, so that a killed
process or a full disk leaves the older ones as they were. `state.pt` is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysurl import plain
from raysurl.errors import InputError, StorageError, storage_error, unwritable
from raysurl.paths import sha256

# what a state must have, and of which type
PARTS: dict[str, Any] = {
    "step": int, "seconds": int | float, "model": dict, "optimizer": dict, "memory": dict | None,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    path: Path
    step: int
    method: str
    metric: float | None


def save(
    directory: Path, state: dict[str, Any], *, step: int, method: str, metric: float | None = None
) -> Path:
    """Write the state of optimizer step `step` (number of steps done). Raises RunError when it cannot be written."""
    final = directory / f"step-{step:08d}"
    partial = directory / f".partial-{step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        directory.mkdir(exist_ok=True)  # alone: a run directory that is gone is not made again somewhere else
        partial.mkdir()
        torch.save(state, partial / "state.pt")
        manifest = {
            "step": step,
            "method": method,
            "metric": _metric_of(final) if metric is None else metric,
            "bytes": (partial / "state.pt").stat().st_size,
            "sha256": sha256(partial / "state.pt"),
        }
        (partial / "manifest.json").write_text(json.dumps(manifest))
        for name in ("state.pt", "manifest.json", "."):
            _sync(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(directory)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        found = storage_error(error, final) or unwritable(directory)
        why = f"{'' if directory.exists() else 'its folder is gone: '}{found.reason if found else error}"
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"checkpoint {final} could not be written ({why}); the checkpoints before it are whole"
        ) from error
    return final


class Writer:
    """Writes a run's checkpoints one after the other: at once on a CPU, in a thread where their tensors are on a GPU.

    There the state is copied on the device first, so that training goes on while the copy is read and written. An
    error of the thread is raised by the next call.
    """

    def __init__(self, directory: Path, method: str, keep: int) -> None:
        self.directory, self.method, self.keep = directory, method, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the last one is still being written."""
        return self._writing is not None and not self._writing.done()

    def write(self, state: dict[str, Any], step: int, metric: float | None) -> None:
        """Write `state` of `step`, after the one before it. Raises RunError when that or this cannot be written."""
        self.wait()
        on_gpu: list[Tensor] = []
        _each(state, lambda x: on_gpu.append(x) if x.is_cuda else None)
        if not on_gpu:
            return self._write(state, step, metric)
        state = _each(state, lambda x: x.detach().clone())
        ready = torch.cuda.Event()
        ready.record()

        def aside() -> None:
            stream = torch.cuda.Stream(on_gpu[0].device)
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                on_host = _each(state, lambda x: x.cpu())
            self._write(on_host, step, metric)

        self._writing = self._thread.submit(aside)
        return None

    def wait(self) -> None:
        """Until all is written. Raises RunError when it could not be."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _write(self, state: dict[str, Any], step: int, metric: float | None) -> None:
        save(self.directory, state, step=step, method=self.method, metric=metric)
        prune(self.directory, keep=self.keep)


def _each(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """The state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: _each(value, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_each(value, change) for value in state)
    return state


def listing(directory: Path) -> list[Stored]:
    """Finished checkpoints, oldest first; damaged manifests are passed over."""
    found = []
    for path in sorted(directory.glob("step-*")):
        try:
            m = plain.read_mapping(path / "manifest.json")
            found.append(Stored(path, int(m["step"]), str(m["method"]), m["metric"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def load_newest(directory: Path, *, method: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole state (None if there is none) and a sentence for each damaged checkpoint passed over.

    Raises InputError for a checkpoint of another method.
    """
    passed_over = []
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            manifest = plain.read_mapping(path / "manifest.json")
            if (path / "state.pt").stat().st_size != manifest["bytes"]:
                raise ValueError("state.pt is truncated")
            if sha256(path / "state.pt") != manifest["sha256"]:
                raise ValueError("state.pt does not match its checksum")
            named = manifest["method"]
            state = _whole(_load(path / "state.pt")) if named == method else None
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            passed_over.append(
                f"checkpoint {path.name} is damaged ({reason(error)}); using the one before it"
            )
            continue
        if state is None:
            raise InputError(f"checkpoint {path} is of method {named}, this run trains {method}")
        return state, passed_over
    return None, passed_over


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise InputError(
            f"{path} holds something else than tensors and plain values; it is not loaded"
        ) from None


def _whole(state: Any) -> dict[str, Any]:
    """The state, if it has all that a run goes on from. Raises ValueError."""
    if not isinstance(state, dict):
        raise ValueError(f"its state is a {type(state).__name__}, not a mapping")
    if lacking := [key for key in PARTS if key not in state]:
        raise ValueError(f"its state lacks {', '.join(lacking)}")
    for key, kind in PARTS.items():
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise ValueError(f"its {key} is a {type(state[key]).__name__}")
    if state["step"] < 0:
        raise ValueError(f"its step is {state['step']}")
    for name, value in state["model"].items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.isnan().any():
            raise ValueError(f"its {name} holds values that are no numbers")
    return state


def reason(error: Exception) -> str:
    """What an error says, on one line; of a key that is not there, so."""
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0] if error.args else 'a key'}"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _metric_of(directory: Path) -> float | None:
    """Of a checkpoint that is written again, at the same step."""
    return next((s.metric for s in listing(directory.parent) if s.path == directory), None)


def prune(directory: Path, *, keep: int) -> None:
    """Keep the newest `keep` checkpoints and the one of the best metric; remove the rest and partial writes."""
    stored = listing(directory)
    kept = {s.path for s in stored[-keep:]}
    if scored := [s for s in stored if s.metric is not None]:
        kept.add(max(scored, key=lambda s: (s.metric or 0.0, s.step)).path)
    for s in stored:
        if s.path not in kept:
            shutil.rmtree(s.path, ignore_errors=True)
    for partial in directory.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
