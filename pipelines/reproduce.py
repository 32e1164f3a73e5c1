"""Reproduce a published table: `python pipelines/reproduce.py NAME [only.AXIS=LABEL …] [scale=cpu|full]`."""

from raysurl import cli
from raysurl.commands import reproduce

if __name__ == "__main__":
    cli.run(reproduce.main)
