"""Write the report of a run or of a sweep again, from what its directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysurl.errors import InputError
from raysurl.recipe import parse_override
from raysurl.report import write_report
from raysurl.sweep import report as sweep_report


def main(arguments: Sequence[str]) -> None:
    """`report.py run=DIR`, or `report.py sweep=DIR`."""
    given = dict(parse_override(a) for a in arguments)
    run, sweep = given.pop("run", None), given.pop("sweep", None)
    if given or (not run) == (not sweep):
        raise InputError("say which run or which sweep: run=DIR or sweep=DIR, and nothing else")
    if sweep:
        print(sweep_report.write_report(Path(str(sweep)).expanduser()))
        return
    run_dir = Path(str(run)).expanduser()
    if not (run_dir / "recipe.yaml").is_file():
        raise InputError(f"run={run_dir} is not a run directory: it has no recipe.yaml")
    print(f"report: {write_report(run_dir)}")
