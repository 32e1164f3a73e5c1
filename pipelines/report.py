"""Write a run's report again: `python pipelines/report.py run=DIR`."""

from raysurl import cli
from raysurl.commands import report

if __name__ == "__main__":
    cli.run(report.main)
