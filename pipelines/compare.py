"""Fill a comparison table: `python pipelines/compare.py comparison=FILE.yaml output=DIR [jobs=2] [key=value …]`.

Further key=value pairs go to every run; jobs=0 only gathers what is there. The summary goes to results/comparisons/,
from where pipelines/results.py puts it into the README.
"""

import sys
from pathlib import Path

from raysurl import cli
from raysurl.commands.compare import compare

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> None:
    print(compare(arguments, ROOT / "pipelines" / "pretrain.py", ROOT / "results" / "comparisons"))


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
