"""Write a run's report again, from what its directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysurl.errors import InputError
from raysurl.recipe import parse_override
from raysurl.report import write_report


def main(arguments: Sequence[str]) -> None:
    """`report.py run=DIR`."""
    given = dict(parse_override(a) for a in arguments)
    run = given.pop("run", None)
    if given or not run:
        raise InputError("say which run: run=DIR, and nothing else")
    run_dir = Path(str(run)).expanduser()
    if not (run_dir / "recipe.yaml").is_file():
        raise InputError(f"run={run_dir} is not a run directory: it has no recipe.yaml")
    print(f"report: {write_report(run_dir)}")
