"""A sweep's report: table.md, table.csv, report.html and best.yaml in its directory."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from raysurl.report import page
from raysurl.report.charts import Level, Series, line_chart
from raysurl.sweep import plots, tables
from raysurl.sweep.results import Sweep, read_sweep
from raysurl.train.run_directory import write_atomic

STYLE = """<style>
.heat td, .heat th { text-align: center; padding: 5px 8px; border: 0; font-variant-numeric: tabular-nums }
.heat { width: auto; border-spacing: 2px; border-collapse: separate }
.heat .lost { color: var(--bad); background: var(--bad-bg); font-size: 12.5px }
.sweep td { white-space: nowrap }
.sweep small { color: var(--soft) }
.sweep .lost { color: var(--bad) }
</style>"""


def write_report(directory: Path) -> str:
    """Write all files; returns what a person reads on the terminal. Raises InputError where there is no sweep."""
    sweep = read_sweep(directory)
    text = tables.markdown(sweep)
    write_atomic(directory / "table.md", text)
    write_atomic(directory / "table.csv", tables.to_csv(sweep))
    best = sweep.best()
    if best and (stored := directory / "trials" / best[0] / "recipe.yaml").is_file():
        recipe = stored.read_text()
        head = f"# Best of {sweep.space.name} (scale={sweep.scale}): {sweep.space.metric} {best[1].text()}\n"
        write_atomic(directory / "best.yaml", head + _without_output(recipe))
    write_atomic(directory / "report.html", html(sweep))
    return f"{text}\nreport: {directory / 'report.html'}"


def _without_output(recipe: str) -> str:
    return "".join(line for line in recipe.splitlines(keepends=True) if not line.startswith("output:"))


def html(sweep: Sweep) -> str:
    """The page: offline, without scripts."""
    importance = plots.importance(sweep)
    curves = "".join(plots.curves(sweep))
    parts = [
        STYLE,
        f"<h1>{escape(sweep.space.title)}</h1>",
        *(f'<p class="soft">{escape(fact)}</p>' for fact in tables.facts(sweep)),
        page.section("Findings", _list(tables.findings(sweep))),
        page.section("Table", table(sweep)),
        page.section("Curves", f'<div class="charts two">{curves}</div>' if curves else ""),
        page.section("Heat maps", plots.heat_maps(sweep), "Darker is better; each map has its own scale."),
        page.section(
            "Effect of each axis",
            plots.effects(sweep),
            "Means over all other axes of the cells with a number.",
        ),
        page.section("Search", progress(sweep)),
        page.section(
            "Parallel coordinates",
            plots.parallel(sweep),
            "A line per finished trial, the best fifth in colour.",
        ),
        page.section(
            "Importance",
            f'<div class="card">{plots.bars(importance)}</div>' if importance else "",
            f"Resources of the variance of {sweep.space.metric} that an axis explains (fANOVA); rough for few trials.",
        ),
    ]
    return page.document(sweep.space.title, "".join(parts))


def _list(sentences: list[str]) -> str:
    items = "".join(f"<li>{escape(said)}</li>" for said in sentences)
    return f'<div class="card"><ul style="margin:0;padding-left:20px">{items}</ul></div>' if items else ""


def table(sweep: Sweep) -> str:
    head, lines = tables.grid(sweep)
    row = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    return f'<div class="card scroll"><table class=sweep><tr>{row}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    ours, slash, paper = text.partition(" / ")
    lost = " class=lost" if ours.startswith(("collapsed", "diverged", "failed")) else ""
    return f"<td{lost}>{escape(ours)}{f' <small>/ {escape(paper)}</small>' if slash else ''}</td>"


def progress(sweep: Sweep) -> str:
    """Of an open search: each trial's result and the best so far; with a second objective, both against each other."""
    done = [o for o in sweep.ended if o.state == "finished" and sweep.space.metric in o.metrics]
    if sweep.space.search != "optuna" or len(done) < 2:
        return ""
    values = np.array([o.metrics[sweep.space.metric] for o in done])
    so_far = np.maximum.accumulate(values) if sweep.higher_is_better else np.minimum.accumulate(values)
    x = np.arange(1, len(values) + 1, dtype=np.float64)
    charts = [
        line_chart(
            "Trials, in the order in which they began",
            [Series("result", x, values), Series("best of these", x, so_far)],
            x_name="trial",
            note=sweep.space.metric,
        )
    ]
    if len(sweep.space.objectives) > 1:
        points = sorted((o.seconds, o.metrics[sweep.space.metric]) for o in done)
        front = [p for i, p in enumerate(points) if p[1] > max((q[1] for q in points[:i]), default=-np.inf)]
        levels = [Level("best", float(values.max()))]
        charts.append(
            line_chart(
                "Result over time: the trials that none beats in both",
                [Series.of("front", front)],
                x_name="seconds",
                note=sweep.space.metric,
                levels=levels,
            )
        )
    return f'<div class="charts two">{"".join(charts)}</div>'
