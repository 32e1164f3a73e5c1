"""The page of the searches: the best beside the paper's setting, what matters, and what foretells the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks import _kept
from benchmarks._curves import SIGNALS, Curve
from benchmarks._signals import SHARES, agreements

from raysurl import intervals

LEVEL = 1.0  # points of accuracy below the best of all trials that still count as the plateau
LOST = 0.5  # points that pruning may lose in the mean over orders
GOAL = 0.6  # of the epochs saved
Row = Mapping[str, Any]


def page(rows: _kept.Rows) -> str:
    trials = {len(row["trials"]) for row in rows.values()}
    epochs = {row["epochs"] for row in rows.values()}
    minutes = sum(trial["seconds"] for row in rows.values() for trial in row["trials"]) / 60
    return "\n".join(
        [
            "# Searches, and which signal foretells the end", "", f"> {summary(rows)}", "",
            f"{_range(trials)} trials of each method, {_range(epochs)} epochs of 4,000 images of CIFAR-10 at 16 px, the"
            " small convolutional network; Optuna's TPE, the paper's setting first, no trial pruned. Trials are judged"
            " by kNN (k = 200) of 2,000 other training images; both settings of the first table were then trained anew"
            f" with three other seeds and judged by the test images. {minutes:.0f} min of training and evaluation, one"
            " thread each, two at a time. Command: `python pipelines/benchmark.py searches data=FOLDER`."
            f" {_kept.where(rows)}", "",
            *settings_table(rows), *importance_table(rows), *agreement_table(rows), *replay_table(rows),
        ]
    ) + "\n"  # fmt: skip


def _range(values: set[int]) -> str:
    return f"{min(values)}" if len(values) == 1 else f"{min(values)} to {max(values)}"


def summary(rows: _kept.Rows) -> str:
    gains = {method: gain(row) for method, row in rows.items()}
    above = [method for method, told in gains.items() if told and told[1] > 0]
    names = f" ({', '.join(above)})" if above else ""
    level = [method for method, row in rows.items() if _same(row["best"], row["paper"])]
    names += f"; in {', '.join(level)} the paper's is the best" if level else ""
    early = str(SHARES[0])
    means = {name: mean_agreement(rows, name, early) for name in SIGNALS}
    free = max((name for name in means if "labels" not in name), key=means.__getitem__)
    labelled = next(name for name in means if "labels" in name)
    return (
        f"Trained anew, the best setting of a search is surely above the paper's in {len(above)} of {len(rows)}"
        f" methods{names}. After {float(early):.0%} of the epochs {free} ranks trials best of the signals without"
        f" labels (Spearman {means[free]:.2f} in the mean over the methods; kNN with labels {means[labelled]:.2f})."
        f" {saved_sentence(rows)}"
    )


def gain(row: Row) -> tuple[float, float, float] | None:
    """By how much the best is above the paper's setting, with its interval over seeds, paired by seed."""
    pairs = list(zip(row["again"].get("best", []), row["again"].get("paper", []), strict=False))
    between = intervals.over_seeds([a - b for a, b in pairs]) if pairs else None
    return (fmean(a - b for a, b in pairs), *between) if between else None


def mean_agreement(rows: _kept.Rows, signal: str, share: str) -> float:
    return fmean(row["agreement"][signal][share][0] for row in rows.values())


def settings_table(rows: _kept.Rows) -> list[str]:
    lines = [
        "## The best of each search beside the paper's setting", "",
        f"The plateau: trials within {LEVEL:g} point of the best. Accuracies of the last two columns are of the test"
        " images, three seeds; the gain with its interval of 95 % (Student's t, paired).", "",
        "| method | setting | of the search | test | gain | in the plateau |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for method, row in rows.items():
        finals = sorted((t["final"] for t in row["trials"]), reverse=True)
        within = sum(final >= finals[0] - LEVEL for final in finals)
        papers = next((t["final"] for t in row["trials"] if _same(t["values"], row["paper"])), None)
        best_is_papers = _same(row["best"], row["paper"])
        for name, values in (("best", row["best"]), ("paper", row["paper"])):
            if name == "best" and best_is_papers:
                continue
            found = finals[0] if name == "best" else papers
            again = row["again"].get(name, [])
            told = gain(row) if name == "best" else None
            of = f"{told[0]:+.1f} ({told[1]:+.1f} to {told[2]:+.1f})" if told else ""
            level = f"{within} of {len(finals)}" if name == "best" else _yes(papers, finals[0])
            called = "best, and the paper's" if best_is_papers else name
            lines.append(
                f"| {method} | {called}: {_settings(values)} | {_number(found)} |"
                f" {_number(fmean(again) if again else None)} | {of} | {level} |"
            )
    return [*lines, ""]


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(str(a[key]) == str(b[key]) for key in b)


def _yes(found: float | None, best: float) -> str:
    return "" if found is None else "yes" if found >= best - LEVEL else "no"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def importance_table(rows: _kept.Rows) -> list[str]:
    lines = [
        "## Which axis matters", "",
        "The share of the variance of the accuracy that an axis explains (fANOVA), with the interval of 95 % over"
        " bootstrap samples of the trials; so few of them say little more than which axis is first.", "",
        "| method | axis: share |", "|---|---|",
    ]  # fmt: skip
    for method, row in rows.items():
        shares = sorted(row["importance"].items(), key=lambda item: -item[1][0])
        said = "; ".join(
            f"{axis} {value:.2f} ({low:.2f} to {high:.2f})" for axis, (value, low, high) in shares
        )
        lines.append(f"| {method} | {said} |")
    return [*lines, ""]


def agreement_table(rows: _kept.Rows) -> list[str]:
    lines = [
        "## Which signal ranks trials as they end", "",
        "Spearman's rank correlation of a signal with the accuracy at the end, over all trials of a search, with its"
        " interval of 95 % (bootstrap over trials); the mean is over the methods, and beside it the trials of all"
        " searches are ranked together. Larger RankMe, LiDAR, smaller loss,"
        " alignment, uniformity, and an α nearer to 1 are taken for better. A loss is not comparable across"
        " temperatures or weights.", "",
        f"| signal | after | mean | all trials | {' | '.join(rows)} |", f"|---|---|---|---|{'---|' * len(rows)}",
    ]  # fmt: skip
    together = agreements([Curve(**trial) for row in rows.values() for trial in row["trials"]])
    for name in SIGNALS:
        for share in map(str, SHARES):
            cells = [together[name][share], *(row["agreement"][name][share] for row in rows.values())]
            said = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in cells]
            mean = mean_agreement(rows, name, share)
            lines.append(f"| {name} | {float(share):.0%} | {mean:.2f} | {' | '.join(said)} |")
    return [*lines, ""]


def means_of_replays(rows: _kept.Rows) -> dict[tuple[str, str], tuple[float, float]]:
    """(signal, rule) -> share of the epochs trained and points lost, means over the methods."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows.values():
        for each in row["replays"]:
            found.setdefault((each["signal"], each["rule"]), []).append((each["epochs"], each["lost"]))
    return {key: (fmean(e for e, _ in v), fmean(lost for _, lost in v)) for key, v in found.items()}


def cheapest(rows: _kept.Rows, signal: str) -> tuple[str, float, float] | None:
    """The rule that saves most among those that lose no more than LOST."""
    of = {rule: both for (name, rule), both in means_of_replays(rows).items() if name == signal}
    kept = {rule: both for rule, both in of.items() if both[1] <= LOST}
    rule = min(kept, key=lambda name: kept[name][0], default=None)
    return None if rule is None else (rule, *kept[rule])


def saved_sentence(rows: _kept.Rows) -> str:
    found = {name: told for name in SIGNALS if (told := cheapest(rows, name))}
    free = {name: told for name, told in found.items() if "labels" not in name}
    if not free:
        return f"No rule without labels loses less than {LOST} points."
    name = min(free, key=lambda each: free[each][1])
    rule, epochs, lost = free[name]
    labelled = [
        f"; by {name}, {1 - told[1]:.0%} for {told[2]:.1f}"
        for name, told in found.items()
        if name not in free
    ]
    return (
        f"Pruning by {name} ({rule}) would have saved {1 - epochs:.0%} of the epochs (goal {GOAL:.0%}) for"
        f" {lost:.1f} points below the best{''.join(labelled)}."
    )


def replay_table(rows: _kept.Rows) -> list[str]:
    lines = [
        "## What pruning would have saved", "",
        "Ray's schedulers, told the curves of the trials in 100 random orders, two at a time: the share of the epochs"
        f" that is saved, and the points by which the best of what is left is below the best of all; means over orders"
        f" and methods. Of each signal the rule that saves most and loses at most {LOST} points, and the one that loses"
        " least.", "",
        "| signal | rule | saved | lost |", "|---|---|---|---|",
    ]  # fmt: skip
    means = means_of_replays(rows)
    for name in SIGNALS:
        told = cheapest(rows, name)
        least: Sequence[Any] = min(
            ((both[1], both[0], rule) for (signal, rule), both in means.items() if signal == name),
            default=(),
        )
        shown = {told[0]: told[1:]} if told else {}
        shown |= {least[2]: (least[1], least[0])} if least else {}
        lines += [f"| {name} | {rule} | {1 - e:.0%} | {lost:.2f} |" for rule, (e, lost) in shown.items()]
    return lines
