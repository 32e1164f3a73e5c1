"""The head of a run's page: its headline beside the baselines, what that means, its health, and the run at a glance."""

from __future__ import annotations

import math
from html import escape

from raysurl import health
from raysurl.evaluate import SEEN, prefixed
from raysurl.evaluate.headline import headline
from raysurl.report.charts import number
from raysurl.report.run import BASELINES, StoredRun, duration, label
from raysurl.report.terminal import THE, between

_SIGNALS = {
    "health/std": "feature spread",
    "health/training_std": "training spread",
    "health/rankme": "RankMe",
    "health/teacher_entropy": "teacher entropy",
}


def head(run: StoredRun) -> str:
    state = (
        '<span class="pill">finished</span>'
        if run.finished
        else '<span class="pill warn">not finished</span>'
    )
    return f'<h1>{escape(run.title)}{state}</h1><p class="soft"><code>{escape(str(run.directory.name))}</code></p>'


def headline_of(run: StoredRun) -> str | None:
    """The metric that the paper of the run's recipe reports."""
    smallest, features = run.results.get("smallest_class"), run.get("eval", "features")
    known = isinstance(smallest, int) and not isinstance(smallest, bool)
    measured = {name for name, value in run.final.items() if math.isfinite(value)}
    return headline(measured, str(features) if features else None, smallest if known else None)


def verdict(run: StoredRun) -> str:
    name = headline_of(run)
    baselines = {} if name is None else _baselines(run, name)
    big = bars = ""
    if name is not None:
        value, span = run.final[name], between(run.result("intervals").get(name))
        said = f'<div class="between">{escape(span)} (95 %)</div>' if span else ""
        when = "last epoch" if run.finished else "latest"
        big = (
            f'<div><div class="big">{value:.1f}<small>%</small></div>{said}'
            f'<div class="soft">{escape(label(name))}, accuracy, {when}</div></div>'
        )
        bars = _bars(run, {"This run": name, **{BASELINES[p]: metric for p, metric in baselines.items()}})
    return (
        f'<div class="card verdict">{big}{bars}<div class="say">{escape(_sentence(run, name, baselines))}</div>'
        f"{_health(run)}</div>"
    )


def _baselines(run: StoredRun, name: str) -> dict[str, str]:
    """Prefix of a baseline -> its metric."""
    return {
        prefix: metric
        for prefix in BASELINES
        if (metric := prefixed(name, prefix)) in run.final and math.isfinite(run.final[metric])
    }


def _sentence(run: StoredRun, name: str | None, baselines: dict[str, str]) -> str:
    """The run in one line."""
    if name is None:
        text = "No accuracy: the data has no labels, or no protocol of eval.protocols judges by them."
        if not run.finished:
            text = "No accuracy yet."
    else:
        value, span = run.final[name], between(run.result("intervals").get(name))
        text = f"{label(name)}: {value:.1f} %{f' ({span})' if span else ''}"
        against = [_gap(run, name, prefix, metric) for prefix, metric in baselines.items()]
        text += f", {' and '.join(against)}." if against else "; there is no baseline to compare it with."
    if rule := run.results.get("rule"):
        text += f" Rule: {rule}."
    if name is not None and run.saw_test_images:
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


def _gap(run: StoredRun, name: str, prefix: str, metric: str) -> str:
    """`1.1 points above raw pixels (0.2 to 2.0)`, the interval of the difference in brackets."""
    value, baseline = run.final[name], run.final[metric]
    gap = f"{abs(value - baseline):.1f} points {'above' if value >= baseline else 'below'} {THE[prefix]}"
    found = (run.result("gains").get(name) or {}).get(prefix)
    if not isinstance(found, list) or len(found) != 3:
        return gap
    # of a baseline above the run the interval is turned too
    low, high = found[1:] if value >= baseline else (-found[2], -found[1])
    chance = "; the interval includes zero" if low <= 0 <= high else ""
    return f"{gap} ({low:.1f} to {high:.1f}{chance})"


def _bars(run: StoredRun, metrics: dict[str, str]) -> str:
    """A bar from zero for each, with the interval at its end."""
    rows = ""
    for i, (words, metric) in enumerate(metrics.items()):
        value, kind = run.final[metric], "" if i else "own"
        inside = f'<i style="width:{_percent(value):.1f}%"></i>'
        if found := run.result("intervals").get(metric):
            low, high = map(_percent, found)
            inside += f'<u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>'
        rows += (
            f'<span class="{kind}">{escape(words)}</span><div class="bar {kind}">{inside}</div>'
            f"<b>{value:.1f} %</b>"
        )
    return f'<div class="bars">{rows}</div>'


def _percent(value: float) -> float:
    return min(max(value, 0.0), 100.0)


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


def tiles(run: StoredRun) -> str:
    """The cost of the run at a glance."""
    results = run.results
    samples, world, skipped = results.get("num_samples"), results.get("world_size"), results.get("skipped")
    speeds = sorted(v for _, v in run.points(run.steps, "speed/images_per_s"))
    waits = [v for _, v in run.points(run.steps, "speed/data_wait")]
    done = run.x(max(run.steps) + 1) if run.steps else None
    found = {
        f"{run.x_name}s trained": number(round(done, 1)) if done is not None else None,
        "images": f"{samples:,}" if isinstance(samples, int) else None,
        "images per second": number(round(speeds[len(speeds) // 2])) if speeds else None,
        "waiting for data": f"{100 * sum(waits) / len(waits):.1f} %" if waits else None,
        "in all": duration(results.get("seconds")),
        "workers": str(world) if isinstance(world, int) else None,
        "inputs skipped": str(len(skipped)) if isinstance(skipped, list) and skipped else None,
    }
    cells = "".join(
        f"<div class=tile><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in found.items() if v
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""
