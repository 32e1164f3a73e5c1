"""Choose what to label: `python pipelines/select.py embeddings=FILE.parquet output=DIR [n=500] [by=typicality]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("select")
