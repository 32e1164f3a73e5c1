"""Figures of Plotly as plain data, which the page's script draws: no part of Plotly is imported at the end of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

DIGITS = 5  # that a number of a chart keeps
Data = Sequence[Mapping[str, Any]]


def figure(
    title: str,
    data: Data,
    layout: Mapping[str, Any] | None = None,
    *,
    note: str = "",
    height: int = 190,
    kind: str = "",
    config: Mapping[str, Any] | None = None,
) -> str:
    """HTML of one figure under its title. `height` in pixels; `note` explains the quantity in a few words.

    Colours may be those of the page, `var(--s1)`. Text from outside must have gone through `words`.
    """
    said = f'<span class="note">{escape(note)}</span>' if note else ""
    caption = f"<figcaption><b>{escape(title)}</b>{said}</figcaption>" if title or said else ""
    return f'<figure class="{f"chart {kind}".strip()}">{caption}{place(data, layout or {}, height, config)}</figure>'


def place(data: Data, layout: Mapping[str, Any], height: int, config: Mapping[str, Any] | None = None) -> str:
    """The figure alone."""
    content = embedded({"data": list(data), "layout": {**layout, "height": height}, "config": config or {}})
    return f'<div class="figure" style="height:{height}px">{content}</div>'


def embedded(value: Any) -> str:
    """JSON as a part of the page that is no script: no text in it can end it."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json">{text}</script>'


def words(text: str) -> str:
    """Text as Plotly shows it, which takes `<b>` and `<a href=…>` in names and labels for markup."""
    return escape(text, quote=False)


def _plain(value: Any) -> Any:
    """Arrays as lists, short numbers, and None for what is not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
