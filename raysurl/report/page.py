"""The page of a report: its style, and small pieces of HTML that escape what they are given."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 128  # longest side of an embedded image

STYLE = """
:root {
  color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --text: #1b1f27; --soft: #59616f; --line:
  #dfe3ea; --grid: #eceff4; --s1: #2458d3; --s2: #b4460b; --s3: #157347; --s4: #7a35c9; --s5: #0c7285;
  --s6: #a3195b; --good: #157347; --bad: #b3261e; --warn: #8a5a00; --mark: #fff3cf; --good-bg: #e3f4ea;
  --bad-bg: #fdeaea; --warn-bg: #fff3cf;
}
@media (prefers-color-scheme:dark) {
  :root {
    --bg: #101319; --card: #181c24; --text: #e9ecf2; --soft: #a5adbb; --line: #2c323e; --grid:
    #232935; --s1: #7ba7ff; --s2: #ff9d66; --s3: #5fd08a; --s4: #c4a2ff; --s5: #5cc8da; --s6: #ff8fbe;
    --good: #5fd08a; --bad: #ff8f86; --warn: #f3c25b; --mark: #3a3115; --good-bg: #16301f; --bad-bg:
    #3a1c1b; --warn-bg: #3a3115;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--bg); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em }
h2 { font-size: 19px; margin: 44px 0 4px; letter-spacing: -.005em }
h3 { font-size: 14px; margin: 22px 0 6px }
p { margin: 6px 0; max-width: 100ch }
.soft, .note { color: var(--soft) }
code, pre { font: 13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
pre {
  white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid
  var(--line); border-radius: 8px; padding: 10px 14px;
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin-top: 10px;
}
.pill {
  display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px; font-weight: 600;
  vertical-align: 4px; margin-left: 10px; background: var(--good-bg); color: var(--good);
}
.pill.warn { background: var(--warn-bg); color: var(--warn) }
.verdict {
  display: grid; grid-template-columns: minmax(200px,auto) 1fr; gap: 10px 44px; align-items: center;
}
.big {
  font-size: 60px; font-weight: 700; line-height: 1; letter-spacing: -.03em; font-variant-numeric:
  tabular-nums;
}
.big small { font-size: 28px; font-weight: 600; letter-spacing: 0; margin-left: 4px }
.verdict .say { grid-column: 1/-1; font-size: 17px }
.bars {
  display: grid; grid-template-columns: auto 1fr auto; gap: 8px 12px; align-items: center; font-size:
  14px;
}
.bars .bar { height: 14px; border-radius: 4px; background: var(--grid) }
.bars .bar i { display: block; height: 100%; min-width: 2px; border-radius: 4px; background: var(--soft) }
.bars .own i { background: var(--s1) }
.bars .own { font-weight: 600 }
.bars b { font-variant-numeric: tabular-nums; text-align: right; font-weight: 600 }
.health { list-style: none; margin: 0; padding: 0; grid-column: 1/-1 }
.health li { border-radius: 8px; padding: 8px 12px; margin-top: 6px; background: var(--bad-bg) }
.health li.ok { background: var(--good-bg) }
.health li.none { background: var(--grid) }
.health b { color: var(--bad) }
.health .ok b { color: var(--good) }
.health .none b { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px; margin-top: 10px }
.tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 10px; line-height: 1.35;
}
.tile b { display: block; font-size: 16.5px; font-variant-numeric: tabular-nums; white-space: nowrap }
.tile span { color: var(--soft); font-size: 12.5px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td {
  padding: 7px 14px 7px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align:
  baseline;
}
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr:last-child td { border-bottom: 0 }
td code { color: var(--soft); font-size: 12px; margin-left: 6px }
td.strong { font-weight: 650 }
.charts {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(min(100%,240px),1fr)); gap: 12px;
  margin-top: 10px;
}
.charts.three { grid-template-columns: repeat(auto-fit,minmax(min(100%,320px),1fr)); margin-bottom: 22px }
.charts.two { grid-template-columns: repeat(auto-fit,minmax(min(100%,440px),1fr)) }
.chart {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px 10px;
  min-width: 0; display: flex; flex-direction: column;
}
figcaption { font-size: 14px; line-height: 1.4; flex: 1 }
figcaption .note { display: block; font-size: 12.5px }
.legend { margin-left: 10px; font-size: 13px }
.key { margin-right: 12px; white-space: nowrap }
.key:before {
  content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; background:
  var(--c); margin-right: 5px; vertical-align: 4px;
}
.plot {
  position: relative; height: 130px; margin: 10px 4px 20px 46px; border-bottom: 1px solid var(--line);
}
.large .plot { height: 230px }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100% }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke: var(--c) }
.line { stroke-width: 2 }
.raw { stroke-width: 1; opacity: .28 }
.dot { stroke-width: 6; stroke-linecap: round }
.plot .level { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4 }
.plot>i, .plot>b { position: absolute; font: 12px/1 system-ui,sans-serif; color: var(--soft) }
.plot>i.y { left: 0; right: 0; border-top: 1px solid var(--grid) }
.plot>i.y span { position: absolute; right: 100%; margin-right: 7px; top: -6px; white-space: nowrap }
.plot>i.x { bottom: -5px; height: 5px; border-left: 1px solid var(--line) }
.plot>i.x span { position: absolute; top: 8px; transform: translateX(-50%) }
.plot>b {
  right: 2px; z-index: 1; background: var(--card); padding: 0 3px; border-radius: 3px; transform:
  translateY(-130%);
}
.plot>b.under { transform: translateY(30%) }
.plot svg { z-index: 1 }
.x-name { text-align: right; font-size: 12px; color: var(--soft); margin-top: -4px }
.s1 { --c: var(--s1) }
.s2 { --c: var(--s2) }
.s3 { --c: var(--s3) }
.s4 { --c: var(--s4) }
.s5 { --c: var(--s5) }
.s6 { --c: var(--s6) }
.hit { position: absolute; top: 0; bottom: 0; z-index: 2 }
.hit>* { display: none }
.hit:hover { background: linear-gradient(var(--line),var(--line)) center/1px 100% no-repeat }
.hit:hover>* { display: block }
.hit u {
  position: absolute; width: 8px; height: 8px; margin: -4px; border-radius: 50%; background: var(--c);
  box-shadow: 0 0 0 2px var(--card);
}
.tip {
  position: absolute; top: 0; z-index: 3; background: var(--text); color: var(--card); font-size: 12px;
  line-height: 1.5; padding: 5px 9px; border-radius: 6px; white-space: nowrap; pointer-events: none;
}
.tip.left { left: calc(100% + 8px) }
.tip.right { right: calc(100% + 8px) }
.tip em { font-style: normal; opacity: .75 }
.images { border-spacing: 0; width: auto }
.images th, .images td { border: 0; padding: 3px; text-align: center; vertical-align: middle; white-space: nowrap }
.images th { text-align: right; padding-right: 10px }
.images img {
  display: block; width: 86px; height: 86px; object-fit: cover; border-radius: 5px; image-rendering:
  auto;
}
.images img.tiny { image-rendering: pixelated }
.near img { width: 78px; height: 78px; outline: 3px solid var(--line); outline-offset: -1px }
.near .good img { outline-color: var(--good) }
.near .bad img { outline-color: var(--bad); outline-style: dashed }
.near td { padding: 5px; vertical-align: top }
.near small { display: block; font-size: 11.5px; line-height: 1.3; margin-top: 3px; color: var(--soft) }
.near .good small { color: var(--good) }
.near .bad small { color: var(--bad) }
.near td:first-child { padding-right: 20px }
.sheet { font-size: 13px }
.sheet th { text-align: left; font-weight: 400; padding-right: 18px }
.sheet th b { display: block; color: var(--text) }
.sheet th small { font-size: 12px }
.sheet img { width: 66px; height: 66px; outline: 3px solid var(--line); outline-offset: -1px }
.sheet .good img { outline-color: var(--good) }
.sheet .bad img { outline-color: var(--bad); outline-style: dashed }
.sheet .top + .under td, .sheet .under + .under td { padding-top: 2px }
.sheet .top td, .sheet .top th { padding-top: 22px }
.sheet .top:first-child td, .sheet .top:first-child th { padding-top: 3px }
.recipe { columns: 2 400px; column-gap: 28px }
.recipe section { break-inside: avoid; padding-bottom: 14px }
.recipe h3 { margin: 0 0 4px }
.recipe dl {
  margin: 0; display: grid; grid-template-columns: minmax(0,auto) minmax(0,1fr); font-size: 13.5px;
}
.recipe dt, .recipe dd { margin: 0; padding: 2px 8px; border-radius: 0; overflow-wrap: anywhere }
.recipe dt { color: var(--soft) }
.recipe .new { background: var(--mark); color: var(--text) }
.recipe dd.new { font-weight: 600 }
details { margin-top: 10px }
summary { cursor: pointer; font-weight: 600 }
@media (max-width:640px) {
  main { padding: 20px 14px 48px }
  .verdict { grid-template-columns: 1fr }
  .big { font-size: 48px }
  h1 { font-size: 23px }
}
"""


def document(title: str, body: str) -> str:
    """A whole page. Its policy forbids any request, so what is not embedded is never loaded."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
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
