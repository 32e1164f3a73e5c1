"""A run in a notebook: a bar, the latest numbers, and what happened, in one output that is renewed."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from rich.console import Console

EVERY_S = 0.5  # between two renewals
KEPT = 6  # of the latest events


def beginning() -> Callable[[Iterator[dict[str, Any]], Console], None]:
    """What shows lines of a run in the output of the cell that runs now."""
    display: Any = importlib.import_module("IPython.display")  # of the notebook in which this process runs
    handle = display.display(display.HTML(html({}, [])), display_id=True)

    def shown(lines: Iterator[dict[str, Any]], console: Console) -> None:
        show(lines, lambda text: handle.update(display.HTML(text)))

    return shown


def show(lines: Iterator[dict[str, Any]], renew: Callable[[str], object]) -> None:
    """`renew` is given the whole output anew, now and then and at the end."""
    latest: dict[str, Any] = {}
    said: list[str] = []
    renewed = 0.0
    for line in lines:
        latest |= {key: value for key, value in line.items() if key != "event"}
        evaluated = [f"{name} {value:.2f}" for name, value in line.items() if name.startswith("eval/")]
        if text := line.get("event") or "  ".join(evaluated):
            said.append(f"step {line['step']}: {text}")
        if time.monotonic() - renewed > EVERY_S:
            renewed = time.monotonic()
            renew(html(latest, said))
    renew(html(latest, said))


def html(latest: dict[str, Any], said: list[str]) -> str:
    """`latest`: the newest value of everything; `said`: events and evaluations, oldest first."""
    total, loss = latest.get("total_steps"), latest.get("train/loss")
    done = latest["step"] + 1 if total and loss is not None else 0
    at = f' value="{min(done, total)}" max="{total}"' if total else ""
    numbers = [f"{min(done, total)}/{total} steps"] if total else ["starting"]
    if loss is not None:
        numbers += [f"epoch {latest['epoch']:.1f}", f"loss {loss:.4f}"]
    if "speed/images_per_s" in latest:
        numbers.append(f"{latest['speed/images_per_s']:.0f} images/s")
    events = "".join(f"<div><small>{escape(text)}</small></div>" for text in said[-KEPT:])
    return f'<div><progress{at} style="width:20em"></progress> {escape("  ".join(numbers))}{events}</div>'
