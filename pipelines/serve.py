"""Serve a trained encoder: `python pipelines/serve.py run=DIR [index=DIR]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("serve")
