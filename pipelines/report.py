"""Write a report again: `python pipelines/report.py run=DIR`, or the tables of a sweep: `sweep=DIR`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("report")
