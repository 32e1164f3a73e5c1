"""Pages of curation: pictures of rows in the style of the report, offline, one file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysurl.curation.pictures import Pictures, Pixels
from raysurl.paths import whole
from raysurl.report.page import document, image, section

PAGE = "page.html"
STYLE = """<style>
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 12px; margin-top: 12px }
.gallery figure { margin: 0; min-width: 0 }
.gallery img, .gallery .gone { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--grid) }
.gallery img.tiny { image-rendering: pixelated }
.gallery .gone { display: grid; place-items: center; color: var(--soft); font-size: 12px }
.gallery figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px; color: var(--soft); overflow-wrap: anywhere }
.gallery figcaption b { display: block; color: var(--text); font-variant-numeric: tabular-nums }
.gallery .mark img, .gallery .mark .gone { outline: 3px solid var(--s1); outline-offset: 1px }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(236px, 1fr)); gap: 12px; margin-top: 12px }
.pairs .card { margin: 0; padding: 12px }
.pairs .gallery { grid-template-columns: 1fr 1fr; margin: 0 }
.pairs h3 { margin: 0 0 8px; font-variant-numeric: tabular-nums }
.row { margin-top: 12px; padding: 14px 16px }
.row h3 { margin: 0 }
.row .gallery { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 10px }
</style>"""

Caption = tuple[str, str]  # in bold, and below


def write_page(
    folder: Path, title: str, lead: str, parts: Sequence[tuple[str, str, str]], pictures: Pictures
) -> Path:
    """`page.html` of `folder`: a title, a sentence, and sections of (title, HTML, note)."""
    remark = pictures.remark()
    body = f"{STYLE}<h1>{escape(title)}</h1><p>{escape(lead)}</p>"
    if remark:
        body += f'<p class="note">{escape(remark)}.</p>'
    body += "".join(section(name, html, note) for name, html, note in parts)
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / PAGE) as partial:
        partial.write_text(document(title, body), encoding="utf-8", errors="backslashreplace")
    return folder / PAGE


def gallery(
    rows: Sequence[int],
    shown: dict[int, Pixels],
    captions: Sequence[Caption],
    marked: int | None = None,
    *,
    first: str = "",
) -> str:
    """A grid of rows with their captions; the `marked` one has a frame. `first`: a figure before them."""
    figures = "".join(
        figure(shown.get(row), caption, row == marked) for row, caption in zip(rows, captions, strict=True)
    )
    return f'<div class="gallery">{first}{figures}</div>'


def figure(pixels: Pixels | None, caption: Caption, marked: bool = False) -> str:
    bold, below = caption
    seen = '<div class="gone">no picture</div>' if pixels is None else image(pixels, below or bold)
    strong = f"<b>{escape(bold)}</b>" if bold else ""
    frame = ' class="mark"' if marked else ""
    return f"<figure{frame}>{seen}<figcaption>{strong}{escape(below)}</figcaption></figure>"


def pair_cards(
    pairs: NDArray[np.int64], titles: Sequence[str], sides: tuple[tuple[dict[int, Pixels], Any], ...]
) -> str:
    """A card for each pair (P, 2); `sides`: of each of the two, pictures by row, and row -> name."""
    cards = ""
    for pair, title in zip(pairs.tolist(), titles, strict=True):
        two = "".join(
            figure(shown.get(row), ("", name(row))) for row, (shown, name) in zip(pair, sides, strict=True)
        )
        cards += f'<div class="card"><h3>{escape(title)}</h3><div class="gallery">{two}</div></div>'
    return f'<div class="pairs">{cards}</div>' if cards else ""


def row_card(title: str, note: str, inside: str) -> str:
    return f'<div class="card row"><h3>{escape(title)}</h3><p class="note">{escape(note)}</p>{inside}</div>'


def short_names(table: Any, rows: NDArray[np.int64]) -> list[str]:
    """What rows of a table are called under pictures: the path within the data, and the row in a file of many."""
    some = table.select(["name", "path", "row"]).take(pa.array(rows, pa.int64())).to_pylist()
    return [
        brief(row["path"] if row["row"] < 0 else f"{row['path']} row {row['row']}")
        if row["path"]
        else brief(row["name"])
        for row in some
    ]


def brief(name: str, most: int = 46) -> str:
    """The end of a long name."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
