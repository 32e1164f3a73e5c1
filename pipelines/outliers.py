"""Find outliers: `python pipelines/outliers.py embeddings=FILE.parquet output=DIR [by=lof] [k=50]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("outliers")
