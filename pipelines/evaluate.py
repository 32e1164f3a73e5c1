"""Evaluate a run or an encoder file: `python pipelines/evaluate.py run=DIR|FILE [key=value …]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("evaluate")
