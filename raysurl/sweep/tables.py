"""A sweep as Markdown, CSV and sentences."""

from __future__ import annotations

import csv
import io

from raysurl.evaluate import prefixed
from raysurl.sweep.paper import paper_seconds
from raysurl.sweep.results import CellResult, Made, Sweep, left_out, rows
from raysurl.sweep.space import INACTIVE, Space
from raysurl.sweep.trial import EARLY

# of a table as CSV, after the axes
COLUMNS = (
    *("mean", "std", "low", "high", "seeds", "paper", *EARLY, "seconds"),
    *("epoch_s", "not_run", "values", "metric", "scale", "of_seeds", "commit", "hardware", "threads"),
)
BASELINES = {"untrained": "untrained", "raw pixels": "pixels"}


def markdown(sweep: Sweep) -> str:
    """Each cell: ours, mean ± standard deviation (seeds), and the paper's number beside it."""
    parts = [f"# {sweep.space.title}", "", *[f"{line}  " for line in facts(sweep)], ""]
    head, lines = grid(sweep)
    parts += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    parts += [f"| {' | '.join(line)} |" for line in lines]
    parts += ["", *[f"- {said}" for said in findings(sweep)]]
    return "\n".join(parts) + "\n"


def grid(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text."""
    names, column, found = rows(sweep)
    if column is None:
        return _list(sweep, names, [(labels, entry) for labels, (entry,) in found if entry is not None])
    head = [*map(sweep.short, names), *(f"{sweep.short(column)} = {label}" for label in sweep.labels(column))]
    return head, [[*_shown(labels), *map(beside, cells)] for labels, cells in found]


def _list(
    sweep: Sweep, names: list[str], found: list[tuple[tuple[str, ...], CellResult]]
) -> tuple[list[str], list[list[str]]]:
    """A line per cell, with all metrics that the space shows; below them the baselines that some cell has."""
    paper = any(entry.paper is not None for _, entry in found)
    shown = sweep.space.shown or {f"ours ({sweep.space.metric})": sweep.space.metric}
    timed = _times(sweep)
    head = [*map(sweep.short, names), *shown, *(["paper"] if paper else []), *timed.pop("", []), "time"]
    lines = []
    for labels, entry in found:
        number = [] if not paper else ["" if entry.paper is None else f"{entry.paper:g}"]
        values = [entry.of(metric).text() for metric in shown.values()]
        times = timed.get(labels[0], [])
        took = f"{entry.seconds:.0f} s" if entry.outcomes else ""
        lines.append([*_shown(labels), *values, *number, *times, took])
    for name, prefix in BASELINES.items():
        values = [_baseline(found, prefixed(metric, prefix)) for metric in shown.values()]
        if any(values):
            empty = len(head) - len(names) - len(values)
            lines.append([name, *[""] * (len(names) - 1), *values, *[""] * empty])
    return head, lines


def _times(sweep: Sweep) -> dict[str, list[str]]:
    """A cell's label -> its time per epoch, ours and the paper's, as shares of one cell's; the heading under ""."""
    timed = sweep.space.epoch_seconds
    if timed is None:
        return {}
    ours = {entry.labels[0]: entry.epoch_s for entry in sweep.entries}
    paper = {labels[0]: seconds for labels, seconds in paper_seconds(sweep.space).items()}
    found = {"": [f"time per epoch / {timed.to}", "paper's"]}
    for label, seconds in ours.items():
        found[label] = [_share(seconds, ours.get(timed.to)), _share(paper.get(label), paper.get(timed.to))]
    return found


def _share(seconds: float | None, of: float | None) -> str:
    if seconds is None:
        return ""
    shown = f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
    return f"{seconds / of:.2f} ({shown})" if of else f"({shown})"


def _baseline(found: list[tuple[tuple[str, ...], CellResult]], metric: str) -> str:
    """Of the first cell that has it: cells of one table share data and encoder."""
    return next((e.of(metric).text() for _, e in found if e.of(metric).values), "")


def beside(entry: CellResult | None) -> str:
    """`ours / paper`; an empty cell where the table has none."""
    if entry is None:
        return ""
    return entry.text() if entry.paper is None else f"{entry.text()} / {entry.paper:g}"


def pilots(space: Space, scale: str) -> list[str]:
    """A sentence on each pilot of its small versions; that of `scale`, which is spoken of already, comes first."""
    found = sorted(space.pilots.items(), key=lambda item: item[0] != scale)
    return [
        pilot.sentence if name == scale else f"At scale={name} ({space.stands_in(name)}): {pilot.sentence}"
        for name, pilot in found
    ]


def facts(sweep: Sweep) -> list[str]:
    """What was run, on what, and what it took."""
    states = (
        ", ".join(f"{count} {state}" for state, count in sorted(sweep.counts.items())) or "none has begun"
    )
    found = [
        f"{sweep.space.name} at scale={sweep.scale}: {len(sweep.trials)} trials ({states}),"
        f" {hours(sweep.seconds)} of training and evaluation in all{_cpu(sweep)}.",
    ]
    if sweep.space.search == "grid":
        by = [
            f"{axis}={k} {name}" for axis, names in sweep.space.measures.items() for k, name in names.items()
        ]
        metric = ", ".join(by) or sweep.space.metric
        found.append(f"Each cell: ours, {metric}, mean ± standard deviation (seeds) / the paper's number.")
    if sweep.scale != "full":
        found.append(
            f"A small version, whose numbers are no reproduction: {sweep.stands_in or 'no stand-ins'}."
        )
        found += pilots(sweep.space, sweep.scale)
    if sweep.space.read_from_figure:
        found.append("The paper's numbers were read off a plot, which prints none.")
    if sweep.space.says:
        found.append(f"The paper says: {sweep.space.says}.")
    found += _rules(sweep)
    if len(sweep.starts) > 1:
        found.append(_restarts(sweep))
    return [*found, *_made(sweep.made)]


def _cpu(sweep: Sweep) -> str:
    """Time of CPU, where all trials had as many threads."""
    if len(sweep.made.threads) != 1:
        return ""
    threads = sweep.made.threads[0]
    return f" ({hours(threads * sweep.seconds)} of CPU, {threads} thread{'s' if threads > 1 else ''} each)"


def _made(made: Made) -> list[str]:
    """By which code, on what, with which seeds, as far as that is known."""
    found = [f"Code at {', '.join(made.commits)}."] if made.commits else []
    found += [f"On {'; '.join(made.hardware)}."] if made.hardware else []
    return found + ([f"Seeds {', '.join(map(str, made.seeds))}."] if made.seeds else [])


def _rules(sweep: Sweep) -> list[str]:
    """A sentence per rule of a method that has several: which cells it made."""
    cells: dict[str, list[str]] = {}
    for entry in sweep.entries:
        for rule in sorted({outcome.rule for outcome in entry.outcomes if outcome.rule}):
            cells.setdefault(rule, []).append(sweep.name(entry))
    return [f"Rule of {'; '.join(names)}: {rule}." for rule, names in cells.items()]


def _restarts(sweep: Sweep) -> str:
    said = f"Started {len(sweep.starts)} times; trials that had ended were not run again."
    if sweep.space.search == "optuna" or sweep.space.prune:
        said += " Later suggestions and prunings may differ from those of an undisturbed sweep."
    return said


def findings(sweep: Sweep) -> list[str]:
    """Verdicts on its claims, agreement with the paper, the best cell, pruning, and what was not run."""
    found = [verdict.sentence for verdict in sweep.verdicts()]
    for agreement in sweep.agreements():
        found.append(agreement.sentence(sweep.space.band.spearman))
        if 2 <= agreement.cells <= 12:
            found.append(
                f"Here: {' > '.join(agreement.order)}. In the paper: {' > '.join(agreement.paper_order)}."
            )
    if best := sweep.best():
        labels = ", ".join(
            f"{sweep.short(a)}={label}"
            for a, label in zip(sweep.axes, best[1].labels, strict=True)
            if label != INACTIVE
        )
        between = best[1].interval
        surely = f", {between[0]:.2f} to {between[1]:.2f} at 95 %" if between else ""
        said = f"{sweep.space.metric} {best[1].text()}{surely}"
        found.append(f"Best here: {labels}, {said}; its recipe is best.yaml.")
    if prune := sweep.space.prune:
        watched = "which needs no labels" if not prune.signal.startswith("eval/") else "which uses labels"
        found.append(f"Poor trials were ended early ({prune.kind}) by {prune.signal}, {watched}.")
    found += [
        f"{name}: {outcome.reason}"
        for name, _, outcome in sweep.trials
        if outcome and outcome.state == "failed"
    ]
    return [*found, *_unhealthy(sweep), *left_out(sweep)]


def _unhealthy(sweep: Sweep) -> list[str]:
    """A sentence for each kind of finding that ended trials (log.on_finding): which ones, and what was found first."""
    found: dict[str, tuple[str, list[str]]] = {}
    for _, what, outcome in sweep.trials:
        _, lasting, said = (outcome.reason if outcome else "").partition(": ")
        if outcome is None or outcome.state != "pruned" or not lasting:
            continue
        labels = [f"{sweep.short(axis)}={label}" for axis, label in what.get("labels", {}).items()]
        seed = [f"seed {what['seed']}"] if "seed" in what else []
        _, trials = found.setdefault(said.partition(":")[0], (said, []))
        trials.append(" ".join([*labels, *seed]))
    return [f"Pruned: {'; '.join(trials)}. The first was found so: {said}" for said, trials in found.values()]


def to_csv(sweep: Sweep) -> str:
    """A line per cell: its labels, then COLUMNS. What is of the whole sweep stands in each line, so that a file says by
    itself what it is of; `raysurl.sweep.kept` reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.axes, *COLUMNS])
    made = sweep.made
    of_all = {
        "scale": sweep.scale,
        "of_seeds": " ".join(map(str, made.seeds)),
        "commit": " ".join(made.commits),
        "hardware": "; ".join(made.hardware),
        "threads": " ".join(map(str, made.threads)),
    }
    for e in sweep.entries:
        low, high = e.interval or (None, None)
        numbers = {"mean": e.mean, "std": e.std, "low": low, "high": high}
        row = {name: "" if value is None else f"{value:.6g}" for name, value in numbers.items()}
        row |= {state: str(e.states[state]) for state in EARLY}
        row |= {"seeds": str(len(e.values)), "paper": "" if e.paper is None else f"{e.paper:g}"}
        row |= {"seconds": f"{e.seconds:.2f}", "epoch_s": "" if e.epoch_s is None else f"{e.epoch_s:.4g}"}
        row |= {"not_run": e.why, "values": " ".join(f"{v:.10g}" for v in e.values), "metric": e.metric}
        writer.writerow([*e.labels, *((row | of_all)[column] for column in COLUMNS)])
    return text.getvalue()


def hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _shown(labels: tuple[str, ...]) -> list[str]:
    return ["" if label == INACTIVE else label for label in labels]
