"""`report.html`: one file that shows what a run learned, how it went and how to run it again.

It opens without a network: curves are SVG, images PNG inside the page, and the page forbids any request. Every
part is left out where the run directory does not have it (no labels, no evaluation yet, an interrupted run).
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from raysurl import health
from raysurl.evaluate import SEEN, prefixed
from raysurl.paths import whole
from raysurl.report import confusion, figures, page, tree
from raysurl.report.charts import number
from raysurl.report.recipe import recipe_section
from raysurl.report.run import BASELINES, StoredRun, duration, is_of_clusters, label, read_run, shown
from raysurl.report.terminal import THE, between

__all__ = ["write_report"]

HEADLINE = "eval/knn_top1"
DISTANCES_NOTE = (
    "Pairs of a test and a train image: the less the two curves overlap, the better classes are told apart."
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Reads recipe.yaml, metrics.jsonl, results.json and samples/ (views, neighbours, disturbed, distances, confusion and
    clusters .npz, embedding.png), as far as they are there. Raises InputError if `run_dir` is no
    run directory.
    """
    run = read_run(Path(run_dir))
    body = (
        _head(run)
        + _verdict(run)
        + _tiles(run)
        + page.section("Results", _results(run), _results_note(run))
        + page.section("Curves", figures.curves(run), "Move the pointer over a chart to read its values.")
        + page.section(
            "What the method saw",
            figures.views(run),
            "Originals and the views made of them, one column each.",
        )
        + page.section(
            "Embedding", figures.embedding(run), "Each point is a training sample, coloured by its class."
        )
        + page.section("Nearest neighbours", figures.neighbours(run))
        + page.section("Neighbours of augmented images", figures.disturbed(run))
        + page.section("Distances", figures.distances(run), DISTANCES_NOTE)
        + page.section("Confused classes", confusion.section(run), confusion.NOTE)
        + page.section("Clusters", tree.numbers(run) + tree.charts(run) + tree.sheets(run), tree.NOTE)
        + page.section("Recipe", recipe_section(run), "What differs from the defaults.")
        + page.section("Environment", _environment(run))
        + page.section("Skipped inputs", _skipped(run))
        + page.section("Events", _events(run))
    )
    path = Path(run_dir) / "report.html"
    with whole(path) as partial:
        # half a character of a damaged file must not cost the report
        partial.write_text(page.document(run.title, body), encoding="utf-8", errors="backslashreplace")
    return path


# -------------------------------------------------------------------- head


def _head(run: StoredRun) -> str:
    state = (
        '<span class="pill">finished</span>'
        if run.finished
        else '<span class="pill warn">not finished</span>'
    )
    return f'<h1>{escape(run.title)}{state}</h1><p class="soft"><code>{escape(str(run.directory.name))}</code></p>'


def _verdict(run: StoredRun) -> str:
    value = run.final.get(HEADLINE)
    baselines = {
        name: run.final[metric]
        for prefix, name in BASELINES.items()
        if (metric := prefixed(HEADLINE, prefix)) in run.final
    }
    big = bars = ""
    if value is not None:
        big = (
            f'<div><div class="big">{value:.1f}<small>%</small></div><div class="soft">kNN accuracy (k = 200),'
            f" {'last epoch' if run.finished else 'latest'}</div></div>"
        )
        bars = _bars({"This run": value, **baselines})
    return (
        f'<div class="card verdict">{big}{bars}<div class="say">{escape(_sentence(run, value, baselines))}</div>'
        f"{_health(run)}</div>"
    )


def _sentence(run: StoredRun, value: float | None, baselines: dict[str, float]) -> str:
    """The run in one line."""
    if value is None:
        text = "No accuracy: the data has no labels, or kNN was left out of eval.protocols."
        if not run.finished:
            text = "No accuracy yet."
    elif baselines:
        against = [_gap(run, value, name, v) for name, v in baselines.items()]
        text = f"kNN accuracy of {value:.1f} %{_between(run, HEADLINE)}, {' and '.join(against)}."
    else:
        text = f"kNN accuracy of {value:.1f} %; there is no baseline to compare it with."
    if rule := run.results.get("rule"):
        text += f" Rule: {rule}."
    if value is not None and run.saw_test_images:
        text += f" There is no test set of its own: {SEEN}."
    if not run.finished:
        done, epochs = max(run.steps, default=None), run.get("train", "epochs")
        if done is not None:
            of = f" of {epochs}" if epochs and run.steps_per_epoch else ""
            at = f"{run.x_name} {number(round(run.x(done), 2))}"
            text += f" The run has not finished: its last record is at {at}{of}."
        else:
            text += " The run has not finished: it has no training step on record."
    return text


def _gap(run: StoredRun, value: float, name: str, baseline: float) -> str:
    """`1.1 points above raw pixels (0.2 to 2.0)`, the interval of the difference in brackets."""
    prefix = next(p for p, words in BASELINES.items() if words == name)
    gap = f"{abs(value - baseline):.1f} points {'above' if value >= baseline else 'below'} {THE[prefix]}"
    found = (run.result("gains").get(HEADLINE) or {}).get(prefix)
    if not isinstance(found, list) or len(found) != 3:
        return gap
    # of a baseline above the run the interval is turned too
    low, high = found[1:] if value >= baseline else (-found[2], -found[1])
    chance = "; the interval includes zero" if low <= 0 <= high else ""
    return f"{gap} ({low:.1f} to {high:.1f}{chance})"


def _between(run: StoredRun, name: str) -> str:
    """` (61.2 to 63.4)`, or nothing where no interval is known."""
    text = between(run.result("intervals").get(name))
    return f" ({text})" if text else ""


def _bars(values: dict[str, float]) -> str:
    rows = ""
    for i, (name, value) in enumerate(values.items()):
        kind, width = "" if i else "own", min(max(value, 0.0), 100.0)
        bar = f'<div class="bar {kind}"><i style="width:{width:.1f}%"></i></div>'
        rows += f'<span class="{kind}">{escape(name)}</span>{bar}<b>{value:.1f} %</b>'
    return f'<div class="bars">{rows}</div>'


def _health(run: StoredRun) -> str:
    latest = run.steps[max(run.steps)] if run.steps else {}
    measured = health.combined({n: v for n, v in run.final.items() if n.startswith("health/")}, latest)
    findings = run.results.get("health")
    if not isinstance(findings, list):
        largest = {n: max(v) for n in health.LARGEST if (v := [y for _, y in run.points(run.evaluations, n)])}
        findings = health.diagnose({**latest, **run.final, **measured, **largest}, run.result("gains"))
    if findings:
        items = []
        for finding in map(str, findings):
            kind, colon, text = finding.partition(":")
            items.append(f"<li><b>{escape(kind.capitalize() + colon)}</b>{escape(text)}</li>")
    elif measured:
        values = ", ".join(
            f"{word} {number(round(measured[n], 2))}" for n, word in _SIGNALS.items() if n in measured
        )
        items = [
            f'<li class="ok"><b>Healthy:</b> no sign of collapse{f" ({values})" if values else ""}.</li>'
        ]
    else:
        items = ['<li class="none"><b>Health:</b> not measured yet.</li>']
    return f'<ul class="health">{"".join(items)}</ul>'


_SIGNALS = {
    "health/std": "feature spread",
    "health/training_std": "training spread",
    "health/rankme": "RankMe",
    "health/teacher_entropy": "teacher entropy",
}


def _tiles(run: StoredRun) -> str:
    results = run.results
    samples, world, skipped = results.get("num_samples"), results.get("world_size"), results.get("skipped")
    speeds = sorted(v for _, v in run.points(run.steps, "speed/images_per_s"))
    waits = [v for _, v in run.points(run.steps, "speed/data_wait")]
    done = run.x(max(run.steps) + 1) if run.steps else None
    tiles = {
        "linear probe, SGD": shown("eval/linear_top1", v)
        if (v := run.final.get("eval/linear_top1"))
        else None,
        "linear probe, L-BFGS": shown("eval/lbfgs_top1", v)
        if (v := run.final.get("eval/lbfgs_top1"))
        else None,
        f"{run.x_name}s trained": number(round(done, 1)) if done is not None else None,
        "images": f"{samples:,}" if isinstance(samples, int) else None,
        "images per second": number(round(speeds[len(speeds) // 2])) if speeds else None,
        "waiting for data": f"{100 * sum(waits) / len(waits):.1f} %" if waits else None,
        "in all": duration(results.get("seconds")),
        "workers": str(world) if isinstance(world, int) else None,
        "inputs skipped": str(len(skipped)) if isinstance(skipped, list) and skipped else None,
    }
    cells = "".join(
        f"<div class=tile><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in tiles.items() if v
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


# -------------------------------------------------------------------- tables


def _results(run: StoredRun) -> str:
    own = [n for n in run.final if n.startswith(("eval/", "health/", "train/loss")) and _base(n) == n]
    own = [n for n in own if not is_of_clusters(n)]
    order = {"eval": 0, "health": 1, "train": 2}
    best = run.result("best")
    columns = [p for p in BASELINES if any(prefixed(n, p) in run.final for n in own)]
    rows = []
    for name in sorted(own, key=lambda n: order[n.partition("/")[0]]):
        cells = [_best(run, name, best[name])] if name in best else ["–"] if best else []
        cells += [shown(name, run.final.get(prefixed(name, p))) for p in columns]
        cells.insert(0, between(run.result("intervals").get(name)) or "–")
        rows.append((label(name), name, shown(name, run.final[name]), cells))
    if not rows:
        return ""
    head = ["Last epoch" if run.finished else "Latest", "95 %"]
    head += ["Best on the test set"] if best else []
    head += [BASELINES[p] for p in columns]
    body = "".join(
        f"<tr><td>{escape(words)} <code>{escape(name) if words != name else ''}</code></td><td class='n strong'>"
        f"{escape(value)}</td>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in cells)}</tr>"
        for words, name, value, cells in rows
    )
    header = "<th>Metric</th>" + "".join(f"<th class=n>{escape(column)}</th>" for column in head)
    return f'<div class="card scroll"><table><tr>{header}</tr>{body}</table></div>'


def _results_note(run: StoredRun) -> str:
    notes = ["The last epoch is the result."]
    if run.saw_test_images:
        notes.append(f"No test set: {SEEN}.")
    if run.results.get("best"):
        notes.append("The best epoch was chosen on the test set and so flatters the method.")
    if run.result("intervals"):
        notes.append("Intervals of 95 % say how far another test set of this size would move a number.")
    return " ".join(notes) if len(notes) > 1 else ""


def _base(name: str) -> str:
    """The metric that a baseline's metric belongs to; a trained one is its own."""
    group, _, rest = name.partition("/")
    for prefix in BASELINES:
        rest = rest.removeprefix(f"{prefix}_")
    return f"{group}/{rest}"


def _best(run: StoredRun, name: str, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), int | float):
        return "–"
    step = entry.get("step")
    at = f" ({run.x_name} {number(run.x(step))})" if isinstance(step, int) else ""
    return shown(name, float(entry["value"])) + at


def _environment(run: StoredRun) -> str:
    results = run.results
    rows = [(words, str(results[key])) for key, words in _PLACES.items() if results.get(key) is not None]
    if (took := duration(results.get("seconds"))) is not None:
        rows.append(("Time", took))
    if versions := run.result("versions"):
        rows.append(("Versions", " · ".join(f"{name} {version}" for name, version in versions.items())))
    return page.table([], rows) if rows else ""


_PLACES = {
    "hardware": "Hardware",
    "runtime": "Runtime",
    "world_size": "Workers",
    "threads": "CPU threads of each worker",
    "commit": "Commit (+ means: with changes)",
}


def _skipped(run: StoredRun) -> str:
    skipped = run.results.get("skipped")
    entries = [s for s in skipped if isinstance(s, dict)] if isinstance(skipped, list) else []
    rows = [(str(s.get("index", "")), str(s.get("name", "")), str(s.get("reason", ""))) for s in entries]
    if len(rows) > 50:
        rows = [*rows[:50], ("…", f"{len(rows) - 50:,} more", "")]
    return page.table(["index", "name", "why"], rows) if rows else ""


def _events(run: StoredRun) -> str:
    rows = [(number(e["step"]), str(e["event"])) for e in run.events]
    return page.table(["step", "event"], rows) if rows else ""
