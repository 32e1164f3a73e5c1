"""The page of `raysurl ablations`: one file that opens offline, a card for each table of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from raysurl.report import page
from raysurl.report.charts import number
from raysurl.sweep import tables
from raysurl.sweep.ablations import KINDS, OTHERS, Card, Said, cost, counts, grouped
from raysurl.sweep.plots import as_in_the_paper
from raysurl.sweep.report import STYLE, table
from raysurl.sweep.results import Sweep

TITLE = "The papers' tables"
INTRODUCTION = (
    "Each published table that there is as a search space, the paper's numbers beside what was measured here. A claim"
    " is supported or contradicted where the difference between its two sides of cells is more than the interval of"
    " 95 % over seeds, and cannot be seen at this size where it is not; then the smallest effect that could be seen"
    " stands beside. Small versions say nothing of the papers' data: they ask whether an effect shows on data that a"
    " laptop has."
)
NOTE = "Claims by their verdict; GPU hours: an estimate of what waits, at the paper's size."
CURVES = "Methods on the same images and network, judged while they train; the tables are among the results."
HEADS = (
    "table",
    "supported",
    "contradicted",
    "not seen",
    "not run",
    "Spearman",
    "trials",
    "time",
    "GPU hours",
)
# kind of verdict -> class of its line
LINES = {"supported": "ok", "contradicted": "", "not seen": "warn", "not run": "none"}
OWN = """<style>
.health li { display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline }
.health li.warn { background: var(--warn-bg) }
.health .warn b { color: var(--warn) }
.health .numbers { color: var(--soft); font-size: 13.5px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)) }
.overview td:first-child { min-width: 230px }
.overview td, .overview th { padding-right: 10px }
@media (max-width:640px) { .tiles { grid-template-columns: 1fr 1fr } }
.ablation { scroll-margin-top: 12px }
.ablation h3 { font-size: 17px; margin: 40px 0 6px }
.ablation .pill.none { background: var(--grid); color: var(--soft) }
.ablation p { font-size: 13.5px; margin: 4px 0 }
.ablation pre { margin: 10px 0 0 }
</style>"""


def html(found: Sequence[Card], curves: Sequence[str] = ()) -> str:
    """The whole page. `curves`: charts of methods while they train."""
    body = [STYLE, OWN, f"<h1>{escape(TITLE)}</h1>", f'<p class="soft">{escape(INTRODUCTION)}</p>']
    body += [tiles(found), page.section("Overview", overview(found), NOTE)]
    places = {id(card): place for place, card in enumerate(found)}
    body += [
        page.section(group, "".join(section(card, places[id(card)]) for card in cards), _note(group))
        for group, cards in grouped(found).items()
    ]
    if drawn := "".join(curves):
        body.append(page.section("Learning curves", f'<div class="charts">{drawn}</div>', CURVES))
    return page.document(TITLE, "".join(body))


def _note(group: str) -> str:
    return "Of no paper: what else the folder holds." if group == OTHERS else ""


def tiles(found: Sequence[Card]) -> str:
    took = cost(found)
    shown = {f"claims {KINDS[kind]}": number(count) for kind, count in counts(found).items()}
    shown["tables of papers run"] = f"{took.ran} of {took.tables}"
    shown["trials"] = number(took.trials)
    shown["training and evaluation"] = tables.hours(took.seconds)
    hours = sum({card.name: card.full.total for card in found if card.full and card.waits}.values())
    if hours:
        shown["GPU hours that wait (estimate)"] = f"{hours:,.0f}"
    cells = "".join(
        f"<div class=tile><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in shown.items()
    )
    return f'<div class="tiles">{cells}</div>'


def overview(found: Sequence[Card]) -> str:
    """A line for each table, which can be sorted."""
    rows = "".join(f"<tr>{_line(card, place)}</tr>" for place, card in enumerate(found))
    heads = "".join(
        f'<th scope="col"{" class=n" if i else ""}><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(HEADS)
    )
    return (
        '<div class="card scroll"><table data-sort class="overview">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _line(card: Card, place: int) -> str:
    ranks = [a.spearman for a in card.agreements if a.spearman is not None]
    mean = sum(ranks) / len(ranks) if ranks else None
    seconds = card.sweep.seconds if card.ran else None
    hours = card.full.total if card.full and card.waits and card.full.hours else None
    scale = f", {card.sweep.scale}" if card.ran and card.sweep.scale != "cpu" else ""
    cells = [f'<td><a href="#{_id(card, place)}">{escape(card.title + scale)}</a></td>']
    cells += [_cell(count, f"{count or ''}") for count in counts([card]).values()]
    cells += [_cell(mean, f"{mean:.2f}" if mean is not None else "")]
    cells += [_cell(len(card.sweep.ended), f"{len(card.sweep.ended) or ''}")]
    cells += [
        _cell(seconds, tables.hours(seconds or 0)),
        _cell(hours, f"{hours or 0:,.{0 if (hours or 0) >= 10 else 1}f}"),
    ]
    return "".join(cells)


def _cell(value: float | None, text: str) -> str:
    """A number that is sorted by its value; an empty cell for None."""
    return '<td class="n"></td>' if value is None else f'<td class="n" data-value="{value:.6g}">{text}</td>'


def _id(card: Card, place: int) -> str:
    """Of a card on the page, where a table that was run twice has two."""
    return escape(f"{card.name}-{place}")


# -------------------------------------------------------------------- a card


def section(card: Card, place: int) -> str:
    """Claims with their verdicts, charts, numbers, and what it took and would take."""
    charts = "".join(as_in_the_paper(card.sweep))
    parts = [
        f"<h3>{escape(card.title)}{_pills(card)}</h3>",
        f'<ul class="health">{"".join(map(_claim, card.claims))}</ul>' if card.claims else "",
        f'<div class="charts two">{charts}</div>' if charts else "",
        _numbers(card),
        *(f'<p class="soft">{escape(said)}</p>' for said in card.facts),
        f"<p>{escape(card.waits)}</p>" if card.waits else "",
        f"<pre>{escape(chr(10).join(card.commands))}</pre>",
    ]
    return f'<section class="ablation" id="{_id(card, place)}">{"".join(parts)}</section>'


def _pills(card: Card) -> str:
    kind = "" if card.ran else " none"
    said = f"scale={card.sweep.scale}" if card.ran else "not run"
    return f'<span class="pill{kind}">{said}</span>'


def _claim(said: Said) -> str:
    numbers = f'<span class="numbers">{escape(said.numbers)}</span>' if said.numbers else ""
    return (
        f'<li class="{LINES[said.kind]}"><b>{escape(KINDS[said.kind].capitalize())}:</b>'
        f"<span>{escape(said.claim)}</span>{numbers}</li>"
    )


def _numbers(card: Card) -> str:
    """The table, with the paper's numbers of cells that were not run too."""
    return table(_whole(card.sweep)) if any(_shows(card.sweep)) else ""


def _shows(sweep: Sweep) -> list[bool]:
    return [entry.paper is not None or bool(entry.outcomes) for entry in sweep.entries]


def _whole(sweep: Sweep) -> Sweep:
    return replace(sweep, entries=tuple(replace(entry, why="") for entry in sweep.entries))
