"""`report.html`: one file that shows what a run learned, how it went and how to run it again.

It opens without a network: charts are drawn by Plotly's script, which is in the page, images are PNG inside it, and the
page forbids any request. Every part is left out where the run directory does not have it (no labels, no evaluation yet,
an interrupted run).
"""

from __future__ import annotations

from pathlib import Path

from raysurl.paths import whole
from raysurl.report import confusion, figures, map, page, results, tree, verdict
from raysurl.report.charts import number
from raysurl.report.recipe import recipe_section
from raysurl.report.run import StoredRun, duration, read_run

__all__ = ["write_report"]

DISTANCES_NOTE = (
    "Pairs of a test and a train image: the less the two curves overlap, the better classes are told apart."
)

OUTLIERS_NOTE = (
    "Of the map's images those that lie farthest from all others (local outlier factor, whitened)."
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Reads recipe.yaml, metrics.jsonl, results.json and samples/ (views, neighbours, disturbed, distances, confusion,
    clusters and map .npz), as far as they are there. Raises InputError if `run_dir` is no run directory.
    """
    run = read_run(Path(run_dir))
    body = verdict.head(run) + verdict.verdict(run) + verdict.tiles(run) + _learned(run) + _made(run)
    path = Path(run_dir) / "report.html"
    with whole(path) as partial:
        # half a character of a damaged file must not cost the report
        partial.write_text(page.document(run.title, body), encoding="utf-8", errors="backslashreplace")
    return path


def _learned(run: StoredRun) -> str:
    """What came of the run."""
    of = map.RunMap(run)
    return (
        page.section("Results", results.evaluation(run), results.note(run))
        + page.section("Curves", figures.curves(run), "Every chart shows its values under the pointer.")
        + page.section("Map", map.section(of), map.NOTE)
        + page.section("Health", results.health(run), "Signals of collapse, by which no label is used.")
        + page.section("Nearest neighbours", figures.neighbours(run))
        + page.section("Neighbours of augmented images", figures.disturbed(run))
        + page.section("Distances", figures.distances(run), DISTANCES_NOTE)
        + page.section("Near copies", map.copies(of), map.copies_note(of))
        + page.section("Outliers", map.outliers(of), OUTLIERS_NOTE)
        + page.section("Classes", confusion.section(run), confusion.NOTE)
        + page.section(
            "Clusters",
            tree.numbers(run) + tree.picture(run, of.arrays) + tree.charts(run) + tree.sheets(run),
            tree.NOTE,
        )
    )


def _made(run: StoredRun) -> str:
    """How the run was made."""
    views = figures.views(run)
    return (
        page.section("What the method saw", views, "Originals and the views made of them, one column each.")
        + page.section("Recipe", recipe_section(run), "What differs from the defaults.")
        + page.section("Environment", _environment(run))
        + page.section("Skipped inputs", _skipped(run))
        + page.section("Events", _events(run))
    )


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
