"""Run a table or a search: `python pipelines/sweep.py space=NAME [scale=cpu|photographs|full] [--print]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("sweep")
