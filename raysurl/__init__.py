"""raysurl: unsupervised representation learning on Ray."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysurl.errors import InputError, RunError
    from raysurl.estimator import GenURL
    from raysurl.interface import StopRun, TrainedRun, load, pretrain, search
    from raysurl.interface.transformer import Encoder

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "GenURL",
    "InputError",
    "RunError",
    "StopRun",
    "TrainedRun",
    "load",
    "pretrain",
    "search",
]

# imported when they are used: torch and scikit-learn take seconds
_WHERE = {
    "Encoder": "raysurl.interface.transformer",
    "GenURL": "raysurl.estimator",
    "InputError": "raysurl.errors",
    "RunError": "raysurl.errors",
    "StopRun": "raysurl.interface",
    "TrainedRun": "raysurl.interface",
    "load": "raysurl.interface",
    "pretrain": "raysurl.interface",
    "search": "raysurl.interface",
}


def __getattr__(name: str) -> Any:
    if name == "curation":  # a package, and not among the names above
        return importlib.import_module("raysurl.curation")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
