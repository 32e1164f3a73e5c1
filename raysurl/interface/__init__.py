"""raysurl in Python: `raysurl.pretrain`, `raysurl.load` and `raysurl.search`, the same objects as the command line."""

from raysurl.errors import InputError, RunError
from raysurl.interface.callbacks import StopRun
from raysurl.interface.models import TrainedModel, load
from raysurl.interface.results import MetricsTable
from raysurl.interface.runs import TrainedRun, pretrain
from raysurl.interface.searching import SearchTable, search

__all__ = [
    "InputError",
    "MetricsTable",
    "RunError",
    "SearchTable",
    "StopRun",
    "TrainedModel",
    "TrainedRun",
    "load",
    "pretrain",
    "search",
]
