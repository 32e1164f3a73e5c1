"""Pretrain an encoder: `python pipelines/pretrain.py [recipe=NAME] [key=value …] [--print]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("pretrain")
