"""Find copies among images: `python pipelines/duplicates.py embeddings=FILE.parquet output=DIR [threshold=0.9]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("duplicates")
