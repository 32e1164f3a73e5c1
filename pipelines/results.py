"""The page of results, generated: `python pipelines/results.py [add=RUN_OR_SWEEP_DIR] [name=NAME]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("results")
