"""Measure this machine: `python pipelines/benchmark.py NAME [key=value …]`, NAME one of benchmarks/; never asserted."""

import importlib
import sys
from pathlib import Path

from raysurl import cli
from raysurl.errors import InputError

NAMES = sorted(p.stem for p in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in NAMES:
        raise InputError(f"say what to measure: {' or '.join(NAMES)}")
    importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    cli.run(main, sys.argv[1:], "benchmark")
