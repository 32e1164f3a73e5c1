"""Choose what to label: `python pipelines/subset.py embeddings=FILE.parquet output=DIR [n=500] [by=typicality]`.

Not `select.py`: a script of that name hides a module of the standard library from every script beside it.
"""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("select")
