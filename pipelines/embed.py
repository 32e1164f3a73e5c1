"""Embed images with a trained encoder: `python pipelines/embed.py run=DIR|FILE to=FILE.parquet [key=value …]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("embed")
