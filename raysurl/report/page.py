"""The page of a report: one file with its style and scripts, and small pieces of HTML that escape what they are given.

A page forbids itself every request. Scripts run only where their digest stands in its policy: Plotly's, which travels
inside compressed, and the two of this folder.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 128  # longest side of an embedded image
FIGURE, MAP = '<div class="figure', '<div class="map"'  # what needs Plotly, and what the script of the map
WEBGL = (MAP, '"type":"parcoords"')
HERE = Path(__file__).parent


@cache
def style() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


@cache
def script(name: str) -> tuple[str, str]:
    """A script of this folder, and what the policy calls it."""
    text = (HERE / name).read_text(encoding="utf-8")
    return text, _source(text.encode())


@cache
def plotly() -> tuple[str, str]:
    """Plotly's script, compressed, in Base64, and what the policy calls it."""
    found = importlib.util.find_spec("plotly")
    assert found is not None
    assert found.submodule_search_locations
    text = (Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(zlib.compress(text, 6)).decode(), _source(text)


def _source(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def document(title: str, body: str) -> str:
    """A whole page; one without a figure or a table to sort has no script.

    Its policy forbids any request, so what is not embedded is never loaded.
    """
    wanted = [name for name, mark in (("map.js", MAP), ("page.js", FIGURE)) if mark in body]
    if "<table data-sort" in body:
        wanted = [*wanted, "page.js"]
    scripts = [script(name) for name in dict.fromkeys(wanted)]
    end = "".join(f"<script>{text}</script>" for text, _ in scripts)
    sources = [source for _, source in scripts]
    if FIGURE in body:
        packed, source = plotly()
        end = f'<script type="text/plain" id="plotly">{packed}</script>{end}'
        sources.append(source)
        # WebGL's shaders are put together by functions that Plotly makes of text
        sources += ["'unsafe-eval'"] if any(mark in body for mark in WEBGL) else []
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:"
    policy += f"; script-src {' '.join(sources)}" if sources else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style()}</style></head><body><main>{body}</main>{end}</body></html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing where there is nothing to show."""
    if not body:
        return ""
    note = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; without a header row if `head` is empty."""

    def line(kind: str, texts: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(text)}</{kind}>' for text in texts)}</tr>" if texts else ""

    body = "".join(line("td", row) for row in rows)
    return f'<div class="card scroll"><table>{line("th", head)}{body}</table></div>'


def image(pixels: np.ndarray[Any, Any], description: str) -> str:
    """An <img> with its PNG inside, of uint8 pixels (H, W, 3); at most MAX_PIXELS wide and high."""
    picture = Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
    tiny = max(picture.size) <= 48  # few pixels: show them as they are
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img{" class=tiny" if tiny else ""} alt="{escape(description)}" src="data:image/png;base64,{data}">'
    )
