"""What people do with embeddings: find images, copies, outliers and clusters, choose what to label, check a split.

Each is a function of embeddings, a file that `raysurl embed` wrote or an array, and the command of that name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysurl.curation.copies import Duplicates, Leaks, duplicates, leaks
    from raysurl.curation.rows import Embeddings, embeddings_of

__all__ = ["Duplicates", "Embeddings", "Leaks", "duplicates", "embeddings_of", "leaks"]

# imported when they are used: torch, faiss and scipy take seconds
_WHERE = {
    "Duplicates": "copies",
    "Embeddings": "rows",
    "Leaks": "copies",
    "duplicates": "copies",
    "embeddings_of": "rows",
    "leaks": "copies",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
