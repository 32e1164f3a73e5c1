"""A sweep's report: table.md, table.csv, report.html and best.yaml in its directory."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from raysurl import plain
from raysurl.report import page
from raysurl.report.terminal import between
from raysurl.sweep import plots, study, tables
from raysurl.sweep.results import Sweep, read_sweep
from raysurl.sweep.space import INACTIVE
from raysurl.sweep.trial import Outcome
from raysurl.train.run_directory import write_atomic

STYLE = """<style>
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
    """The page: offline, with its scripts inside."""
    made = study.figures(sweep)
    order = ("history", "front", "importance", "contour", "parallel")
    shown = "".join(made[name] for name in order if name in made)
    # the trials of an open search are its table
    grid = "" if sweep.space.search == "optuna" else table(sweep)
    parts = [
        STYLE,
        f"<h1>{escape(sweep.space.title)}</h1>",
        *(f'<p class="soft">{escape(fact)}</p>' for fact in tables.facts(sweep)),
        page.section("Findings", _list(tables.findings(sweep))),
        page.section("Table", grid),
        page.section("Trials", trials(sweep), "The best first; a click on a heading sorts by it."),
        page.section("Curves", _charts("".join(plots.curves(sweep)))),
        page.section("Heat maps", _charts(plots.heat_maps(sweep)), "Each map has its own scale of colours."),
        page.section(
            "Effect of each axis",
            _charts(plots.effects(sweep)),
            "Means over all other axes of the cells with a number.",
        ),
        page.section("Study", _charts(shown)),
    ]
    return page.document(sweep.space.title, "".join(parts))


def _charts(charts: str) -> str:
    return f'<div class="charts two">{charts}</div>' if charts else ""


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


def trials(sweep: Sweep) -> str:
    """A row for each trial that has ended, the best first, with a link to its report and the interval of its number."""
    metric, sign = sweep.space.metric, -1 if sweep.higher_is_better else 1
    ended = [(name, what, outcome) for name, what, outcome in sweep.trials if outcome]
    if not ended:
        return ""
    value = {name: outcome.metrics.get(metric) for name, _, outcome in ended}
    ended.sort(key=lambda trial: (value[trial[0]] is None, sign * (value[trial[0]] or 0.0)))
    axes = [axis for axis in sweep.axes if axis not in sweep.space.measures]
    head = ["trial", *(sweep.short(axis) for axis in axes), "seed", metric, "state", "seconds"]
    seeds = len({what.get("seed") for _, what, _ in ended}) > 1
    head = head if seeds else [name for name in head if name != "seed"]
    rows = ""
    for name, what, outcome in ended:
        cells = [_link(sweep, name), *(_sorted_by(what["labels"].get(axis, "")) for axis in axes)]
        cells += [_sorted_by(what.get("seed"))] if seeds else []
        cells += [_measured(sweep, name, value[name]), _state(outcome)]
        cells.append(f'<td class=n data-value="{outcome.seconds:.2f}">{outcome.seconds:.0f}</td>')
        rows += f"<tr>{''.join(cells)}</tr>"
    heads = ""
    for name in head:
        kind = " class=n" if name in (metric, "seconds") else ""
        heads += f'<th scope="col"{kind}><button type="button">{escape(name)}</button></th>'
    return (
        '<div class="card scroll"><table data-sort class="sweep">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _link(sweep: Sweep, name: str) -> str:
    there = (sweep.directory / "trials" / name / "report.html").is_file()
    return (
        f'<td><a href="trials/{quote(name)}/report.html">{escape(name)}</a></td>'
        if there
        else f"<td>{escape(name)}</td>"
    )


def _sorted_by(value: object) -> str:
    text = "" if value in (None, INACTIVE) else str(value)
    return f"<td>{escape(text)}</td>"


def _state(outcome: Outcome) -> str:
    lost = "" if outcome.state == "finished" else " class=lost"
    return f'<td{lost} title="{escape(outcome.reason)}">{escape(outcome.state)}</td>'


def _measured(sweep: Sweep, name: str, value: float | None) -> str:
    if value is None:
        return "<td></td>"
    span = between(_intervals(sweep.directory / "trials" / name / "results.json").get(sweep.space.metric))
    below = f" <small>{escape(span)}</small>" if span else ""
    return f'<td class="n strong" data-value="{value:.6g}">{value:.2f}{below}</td>'


def _intervals(path: Path) -> dict[str, list[float]]:
    """Those of a trial's results, as far as they are there and well formed."""
    found = plain.found_in(path).get("intervals")
    pairs = found.items() if isinstance(found, dict) else ()
    return {
        str(name): [float(end) for end in ends]
        for name, ends in pairs
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    }
