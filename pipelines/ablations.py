"""The papers' tables on one page: `python pipelines/ablations.py [results=DIR] [output=FILE.html]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("ablations")
