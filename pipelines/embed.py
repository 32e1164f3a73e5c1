"""Embed images with a trained encoder: `python pipelines/embed.py run=DIR|FILE to=FILE.parquet [key=value …]`."""

from raysurl import cli
from raysurl.commands import embed

if __name__ == "__main__":
    cli.run(embed.main)
