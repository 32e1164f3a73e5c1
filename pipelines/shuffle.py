"""Write a data set once in random order: `python pipelines/shuffle.py data.path=DIR to=FOLDER [seed=0] [data.…]`."""

from raysurl import cli
from raysurl.commands import shuffle

if __name__ == "__main__":
    cli.run(shuffle.main)
