"""Write the report of a run or of a sweep again, from what its directory holds."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.errors import InputError
from raysurl.paths import place
from raysurl.recipe import take

SETTINGS = {
    "run": ("DIR", "", "a run directory"),
    "sweep": ("DIR", "", "a sweep directory"),
}


def main(arguments: Sequence[str]) -> None:
    """`report.py run=DIR`, or `report.py sweep=DIR`."""
    given, others = take(arguments, *SETTINGS)
    if others or bool(given.get("run")) == bool(given.get("sweep")):
        raise InputError("say which run or which sweep: run=DIR or sweep=DIR, and nothing else")
    if given.get("sweep"):
        from raysurl.sweep import report as sweep_report

        print(sweep_report.write_report(place("sweep", given["sweep"])))
        return
    run_dir = place("run", given["run"])
    if not (run_dir / "recipe.yaml").is_file():
        raise InputError(f"run={run_dir} is not a run directory: it has no recipe.yaml")
    from raysurl.report import write_report

    print(f"report: {write_report(run_dir)}")
