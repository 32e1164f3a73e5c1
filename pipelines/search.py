"""Look images up: `python pipelines/search.py index=DIR image=FILE|DIR output=DIR [k=10]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("search")
