"""Cluster images: `python pipelines/cluster.py embeddings=FILE.parquet output=DIR [k=50 | by=hierarchy]`."""

from raysurl import cli

if __name__ == "__main__":
    cli.run_named("cluster")
