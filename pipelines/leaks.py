"""Find copies across a split: `python pipelines/leaks.py train=A.parquet test=B.parquet output=DIR [fail=true]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("leaks")
