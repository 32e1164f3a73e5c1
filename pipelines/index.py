"""Build an index of embeddings: `python pipelines/index.py embeddings=FILE.parquet output=DIR [kind=auto]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("index")
