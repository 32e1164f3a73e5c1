"""The tables of a run's page: what it reached, with intervals and beside the baselines, and its health apart."""

from __future__ import annotations

from html import escape
from typing import Any

from raysurl.evaluate import SEEN, prefixed
from raysurl.report.charts import number
from raysurl.report.run import BASELINES, NOTES, StoredRun, is_of_clusters, label, shown
from raysurl.report.terminal import between
from raysurl.report.verdict import headline_of


def evaluation(run: StoredRun) -> str:
    """A row for each number that a protocol gave, the headline first."""
    first = headline_of(run)
    names = [n for n in _own(run) if n.startswith("eval/")]
    return _table(run, sorted(names, key=lambda name: name != first))


def health(run: StoredRun) -> str:
    """A row for each signal of health, and the loss."""
    names = [n for n in _own(run) if n.startswith(("health/", "train/loss"))]
    return _table(run, [n for n in names if not is_of_clusters(n)])


def note(run: StoredRun) -> str:
    notes = ["The last epoch is the result."]
    if run.saw_test_images:
        notes.append(f"No test set: {SEEN}.")
    if run.results.get("best"):
        notes.append("The best epoch was chosen on the test set and so flatters the method.")
    if run.result("intervals"):
        notes.append("Intervals of 95 % say how far another test set of this size would move a number.")
    return " ".join(notes) if len(notes) > 1 else ""


def _own(run: StoredRun) -> list[str]:
    """Metrics that are no baseline's, in their order."""
    return [n for n in sorted(run.final) if _base(n) == n]


def _base(name: str) -> str:
    """The metric that a baseline's metric belongs to; a trained one is its own."""
    group, _, rest = name.partition("/")
    for prefix in BASELINES:
        rest = rest.removeprefix(f"{prefix}_")
    return f"{group}/{rest}"


def _table(run: StoredRun, names: list[str]) -> str:
    """Of the columns only those that some row fills."""
    if not names:
        return ""
    best = run.result("best")
    columns = {"Last epoch" if run.finished else "Latest": [_value(run, name) for name in names]}
    columns["Best on the test set"] = [_best(run, name, best.get(name)) for name in names]
    for prefix, words in BASELINES.items():
        columns[words] = [_value(run, prefixed(name, prefix)) for name in names]
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    header = "<th>Metric</th>" + "".join(f"<th class=n>{escape(column)}</th>" for column in columns)
    rows = ""
    for i, name in enumerate(names):
        cells = [cells[i] for cells in columns.values()]
        rows += f"<tr><td>{_called(name)}</td><td class='n strong'>{cells[0]}</td>"
        rows += "".join(f"<td class=n>{cell}</td>" for cell in cells[1:]) + "</tr>"
    return f'<div class="card scroll"><table><tr>{header}</tr>{rows}</table></div>'


def _called(name: str) -> str:
    words, said = label(name), NOTES.get(name)
    code = f" <code>{escape(name)}</code>" if words != name else ""
    return f"{escape(words)}{code}{f'<br><small>{escape(said)}</small>' if said else ''}"


def _value(run: StoredRun, name: str) -> str:
    """A number with its interval below it; nothing where there is none."""
    if name not in run.final:
        return ""
    span = between(run.result("intervals").get(name))
    return escape(shown(name, run.final[name])) + (f"<br><small>{escape(span)}</small>" if span else "")


def _best(run: StoredRun, name: str, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), int | float):
        return ""
    step = entry.get("step")
    at = f"<br><small>{run.x_name} {number(run.x(step))}</small>" if isinstance(step, int) else ""
    return escape(shown(name, float(entry["value"]))) + at
