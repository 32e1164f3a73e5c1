"""Reproduce a published table: `pipelines/reproduce.py NAME [only.AXIS=LABEL …] [scale=cpu|photographs|full]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("reproduce")
