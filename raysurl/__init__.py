"""raysurl: unsupervised representation learning on Ray."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "GenURL":  # imported when it is used: torch and scikit-learn take seconds
        from raysurl.estimator import GenURL

        return GenURL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
