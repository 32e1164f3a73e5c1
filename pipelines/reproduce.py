"""Reproduce a published table: `python pipelines/reproduce.py NAME [only.AXIS=LABEL …] [scale=cpu|full]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("reproduce")
