"""What people do with embeddings: find images, copies, outliers and clusters, choose what to label, check a split.

Each is a function of embeddings, a file that `raysurl embed` wrote or an array, and the command of that name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysurl.curation.clustering import ImageClusters, cluster
    from raysurl.curation.copies import Duplicates, Leaks, duplicates, leaks
    from raysurl.curation.outlying import Outliers, outliers
    from raysurl.curation.rows import Embeddings, embeddings_of
    from raysurl.curation.searching import search_images
    from raysurl.curation.selection import select
    from raysurl.curation.stored_index import StoredIndex, build_index, open_index

__all__ = [
    "Duplicates",
    "Embeddings",
    "ImageClusters",
    "Leaks",
    "Outliers",
    "StoredIndex",
    "build_index",
    "cluster",
    "duplicates",
    "embeddings_of",
    "leaks",
    "open_index",
    "outliers",
    "search_images",
    "select",
]

# imported when they are used: torch, faiss and scipy take seconds
_WHERE = {
    "ImageClusters": "clustering",
    "Duplicates": "copies",
    "Embeddings": "rows",
    "Leaks": "copies",
    "Outliers": "outlying",
    "StoredIndex": "stored_index",
    "build_index": "stored_index",
    "cluster": "clustering",
    "duplicates": "copies",
    "embeddings_of": "rows",
    "leaks": "copies",
    "open_index": "stored_index",
    "outliers": "outlying",
    "search_images": "searching",
    "select": "selection",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
