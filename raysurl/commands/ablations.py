"""Build the page of the papers' tables: verdicts, numbers beside the paper's, and what is still to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysurl.errors import InputError
from raysurl.paths import given_path, place, whole, writable
from raysurl.recipe import nearest, take

# of a checkout
RESULTS, SPEEDS = Path("results/sweeps"), Path("results/benchmarks/gpu.json")
COMPARISONS = Path("results/comparisons")
SETTINGS = {
    "results": (
        "DIR",
        "results/sweeps",
        "tables of sweeps as SPACE.csv, and sweep directories, for example sweeps/",
    ),
    "output": ("FILE.html", "ablations.html", "the page to write; one that is there is written again"),
    "speeds": (
        "FILE.json",
        "results/benchmarks/gpu.json",
        "by which GPU hours are estimated, if it is there",
    ),
    "comparisons": ("DIR", "results/comparisons", "kept tables of methods, whose curves are drawn"),
}


def main(arguments: Sequence[str]) -> None:
    """`ablations [results=DIR] [output=FILE.html] [speeds=FILE.json] [comparisons=DIR]`.

    Reads `SPACE.csv` files, as a sweep's table.csv is kept, and sweep directories, and starts nothing. Every table of
    the papers has a card, those that were never run too, with the command that runs them.
    """
    given, others = take(arguments, *SETTINGS)
    if others:
        raise InputError(
            f"argument {next(iter(others))}= is not known; {nearest(next(iter(others)), SETTINGS, 'ablations takes')}"
        )
    results = given_path("results", given.get("results") or str(RESULTS))
    output = given.get("output") or "ablations.html"
    if not output.endswith(".html"):
        raise InputError(f"output={output} is to be a page; name it output=FILE.html")
    target = writable("output", place("output", output))
    if target.is_dir():
        raise InputError(f"output={output} is a folder; name a file to write, output=FILE.html")
    speeds = given_path("speeds", given.get("speeds") or str(SPEEDS))
    if given.get("speeds") and not speeds.is_file():
        raise InputError(f"speeds={speeds} is no file; name what pipelines/benchmark.py gpu wrote")
    comparisons = given_path("comparisons", given.get("comparisons") or str(COMPARISONS))
    if given.get("comparisons") and not comparisons.is_dir():
        raise InputError(
            f"comparisons={comparisons} is no folder; name one that `raysurl results` has written"
        )
    from raysurl.sweep.ablations import cards, total
    from raysurl.sweep.ablations_page import html
    from raysurl.sweep.comparisons import curve_chart

    found = cards(results, speeds if speeds.is_file() else None)
    charts = [curve_chart(path) for path in sorted(comparisons.glob("*.json"))]
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial:
        partial.write_text(html(found, charts), encoding="utf-8")
    print(total(found))
    print(f"page: {target}")
