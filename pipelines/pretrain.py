"""Pretrain an encoder: `python pipelines/pretrain.py [recipe=NAME] [key=value …] [--print]`."""

from raysurl import cli
from raysurl.commands import pretrain

if __name__ == "__main__":
    cli.run(pretrain.main)
