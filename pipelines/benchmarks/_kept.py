"""Where benchmarks keep what they measured: rows of a JSON file, one for each name, with commit and machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from raysurl.train.run_directory import commit, hardware, write_atomic

FOLDER = Path(__file__).parents[2] / "results" / "benchmarks"
Rows = dict[str, dict[str, Any]]


def keep(file: Path, name: str, row: Mapping[str, Any], device: str, page: Callable[[Rows], str]) -> Rows:
    """Write a row beside those that were kept before, and the page of them all beside the file."""
    rows: Rows = json.loads(file.read_text()) if file.is_file() else {}
    rows[name] = {**row, "commit": commit(), "hardware": hardware(torch.device(device))}
    write_atomic(file, json.dumps(rows, indent=1, sort_keys=True) + "\n")
    write_atomic(file.with_suffix(".md"), page(rows))
    return rows


def where(rows: Rows) -> str:
    """Machines and commits of the rows, as the last words of a page; which rows, where there are several machines."""
    machines: dict[str, list[str]] = {}
    for name, row in rows.items():
        machines.setdefault(row["hardware"], []).append(name)
    said = []
    for machine, names in machines.items():
        commits = ", ".join(f"`{c}`" for c in dict.fromkeys(rows[name]["commit"] for name in names))
        without_units = "; ".join(name.rpartition(", ")[0] or name for name in names)
        few = f" ({without_units})" if len(machines) > 1 else ""
        said.append(f"{machine}{few}: {commits}")
    return f"{'. '.join(said)}."


class Memory:
    """What this process holds at most within the block, in MiB over what it held before: `own`, and `pages` of files
    that are mapped, which the system takes back where it needs room. Read from /proc every 10 ms."""

    def __enter__(self) -> Memory:
        self._before = self._most = _held()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._look()
            time.sleep(0.01)

    def _look(self) -> None:
        self._most = tuple(map(max, self._most, _held()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.own, self.pages = (
            round(most - before, 1) for most, before in zip(self._most, self._before, strict=True)
        )


def _held() -> tuple[float, ...]:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in lines)
        if "kB" in rest
    }
    return kib["RssAnon"] / 1024, kib["RssFile"] / 1024
