"""Predict the classes of images: `python pipelines/predict.py run=DIR|FILE data.path=FOLDER to=FILE`."""

from raysurl import cli
from raysurl.commands import predict

if __name__ == "__main__":
    cli.run(predict.main)
