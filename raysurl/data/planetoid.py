"""The citation graphs Cora, CiteSeer and PubMed in the raw files of Planetoid (Yang et al. 2016).

`ROOT/<Name>/raw/ind.<name>.{x,tx,allx,y,ty,ally,graph,test.index}`. These are pickles of NumPy and SciPy arrays,
and a pickle may run any code: see raysurl.data.pickled for how they are read.
The public split: the first 20 nodes of each class for training, the next 500 for validation, 1,000 for the test.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.pickled import arrays_of_pickle
from raysurl.errors import InputError

NAMES = ("Cora", "CiteSeer", "PubMed")
TRAIN, VALIDATION, TEST = 1, 2, 3
NUM_VALIDATION = 500
MOST_VALUES, MOST_EDGES = 2**28, 2**24  # of features, and in a graph: many times PubMed's
MOST_ISOLATED = 4  # times as many numbers of test nodes as there are test nodes
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
PATIENCE_S = 20  # for a connection, and for the next bytes of a download


@dataclass(frozen=True, eq=False)
class Citations:
    """`features` (N, D) float32; `labels` (N,) int64, −1 = none; `edges` (E, 2) int64; `split` (N,) uint8."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    edges: NDArray[np.int64]
    split: NDArray[np.uint8]


@dataclass(frozen=True)
class NodeArray:
    """The features of a graph's nodes, as an array that each process loads once."""

    name: str
    root: str

    def load(self) -> NDArray[np.float32]:
        return read(self.name, self.root).features


def read(name: str, root: str) -> Citations:
    """Raises InputError for an unknown graph, or raw files that are missing or are not what they should be."""
    return _read(_known(name), root, stamp(name, root))


def stamp(name: str, root: str) -> tuple[int, int]:
    """Of all raw files: their size, and a number that changes with any of their times."""
    folder = _folder(name, root)
    found = [storage.stamp_of(folder, f"ind.{_known(name).lower()}.{part}") for part in PARTS]
    return sum(size for size, _ in found), zlib.crc32(repr(found).encode()) + 1


def _folder(name: str, root: str) -> str:
    return storage.join(storage.join(root, _known(name)), "raw")


@lru_cache(maxsize=2)
def _read(name: str, root: str, _stamp: tuple[int, int]) -> Citations:
    folder = _folder(name, root)
    raw = {part: _load(folder, f"ind.{name.lower()}.{part}") for part in PARTS}
    try:
        return _assemble(raw)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise InputError(f"the raw files in {folder} are not those of Planetoid: {error}") from None


def fetch(name: str, root: str) -> None:
    """Download the raw files that are missing; the others stay. Raises InputError where they cannot be had."""
    name = _known(name)
    if storage.is_uri(root):
        raise InputError(f"data.download=true fetches into a local folder, and data.path={root} is none")
    folder = f"{root}/{name}/raw"
    files = [f"ind.{name.lower()}.{part}" for part in PARTS]
    missing = [file for file in files if not os.path.isfile(f"{folder}/{file}")]
    if not missing:
        return
    try:
        from torch_geometric.datasets import Planetoid
    except ImportError:
        raise InputError(
            f"data.download=true of planetoid:{name} needs torch_geometric; pip install 'raysurl[graph]'"
        ) from None
    try:
        with tempfile.TemporaryDirectory() as fetched:  # half a file must never be taken for a whole one
            _download(Planetoid, name, missing, fetched)
            for file in missing:
                _load(fetched, file)
            os.makedirs(folder, exist_ok=True)
            for file in missing:
                shutil.copyfile(f"{fetched}/{file}", partial := f"{folder}/.{file}.partial")
                os.replace(partial, f"{folder}/{file}")
    except Exception as error:  # of the downloader, of the network, or of the folder
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            f"planetoid:{name} could not be downloaded ({reason}); place {', '.join(missing)} of {Planetoid.url} in"
            f" {folder}"
        ) from None


def _download(planetoid: Any, name: str, files: list[str], folder: str) -> None:
    """Into `folder`, by torch_geometric's own downloader alone: its reading would unpickle what it finds there."""
    import fsspec
    from aiohttp import ClientTimeout

    class Wanted(planetoid):
        raw_file_names, raw_dir = files, folder

        def __init__(self) -> None:
            self.name, self.split = name, "public"

    timeout = ClientTimeout(total=None, sock_connect=PATIENCE_S, sock_read=PATIENCE_S)
    before = fsspec.config.conf.get("https")
    fsspec.config.conf["https"] = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    try:
        Wanted().download()
    finally:
        fsspec.config.conf.pop("https")
        if before is not None:
            fsspec.config.conf["https"] = before


def graph_file(name: str, root: str) -> str:
    """The file that holds the edges of a graph; `edges_of` reads it."""
    name = _known(name)
    return storage.join(root, f"{name}/raw/ind.{name.lower()}.graph")


def edges_of(path: str) -> NDArray[np.int64]:
    """Edges (E, 2) of a raw file `ind.<name>.graph`, as it gives them: either way, some twice, some to itself."""
    folder, _, file = path.rpartition("/")
    try:
        return _edges(_load(folder, file))
    except (ValueError, TypeError, OverflowError) as error:
        known = isinstance(error, InputError)
        raise error if known else InputError(f"{path} is not a raw graph of Planetoid: {error}") from None


def _assemble(raw: dict[str, Any]) -> Citations:
    known, test = _dense(raw, "allx"), _dense(raw, "tx")
    of_known, of_test = _onehot(raw, "ally", len(known)), _onehot(raw, "ty", len(test))
    chosen = len(_onehot(raw, "y", None))
    order = np.array(raw["test.index"].split(), np.int64)
    if len(order) != len(test) or not len(test) or len(np.unique(order)) != len(order):
        raise ValueError(f"test.index names {len(order)} nodes and tx holds {len(test)}")
    first, last = int(order.min()), int(order.max())  # CiteSeer's isolated test nodes are missing in between
    if first != len(known) or last - first >= MOST_ISOLATED * len(test):
        raise ValueError(f"{len(known)} nodes of allx and the test nodes {first} … {last} do not fit")
    if known.shape[1] != test.shape[1] or of_known.shape[1] != of_test.shape[1] or chosen > len(known):
        raise ValueError("the parts differ in their features or classes")
    features = np.zeros((last + 1, known.shape[1]), np.float32)
    labels = np.full(last + 1, -1, np.int64)
    features[: len(known)], labels[: len(known)] = known, of_known.argmax(axis=1)
    features[order], labels[order] = test, of_test.argmax(axis=1)
    split = np.zeros(last + 1, np.uint8)
    split[:chosen], split[chosen : min(chosen + NUM_VALIDATION, len(known))] = TRAIN, VALIDATION
    split[order] = TEST
    labels[: len(known)][of_known.sum(axis=1) == 0] = -1
    labels[order[of_test.sum(axis=1) == 0]] = -1
    edges = _edges(raw["graph"])
    if len(edges) and not (edges.min() >= 0 and edges.max() <= last):
        raise ValueError(f"the graph is between 0 … {last} and names {edges.min()} … {edges.max()}")
    return Citations(features, labels, edges, split)


def _dense(raw: dict[str, Any], part: str) -> NDArray[np.float32]:
    if not isinstance(raw[part], scipy.sparse.csr_matrix):
        raise ValueError(f"{part} is no sparse matrix")
    rows, columns = raw[part].shape
    if rows * columns > MOST_VALUES:
        raise ValueError(f"{part} has {rows} × {columns} values")
    dense: NDArray[np.float32] = raw[part].toarray().astype(np.float32)
    if not np.isfinite(dense).all():
        raise ValueError(f"{part} holds a value that is not finite")
    return dense


def _onehot(raw: dict[str, Any], part: str, rows: int | None) -> NDArray[Any]:
    array = raw[part]
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{part} is no array of nodes × classes")
    if rows is not None and len(array) != rows:
        raise ValueError(f"{part} has {len(array)} rows and its features {rows}")
    return array


def _edges(graph: Any) -> NDArray[np.int64]:
    if not isinstance(graph, dict):
        raise ValueError("it is no dictionary of neighbours by node")
    if not all(isinstance(near, list) for near in graph.values()):
        raise ValueError("it is no dictionary of lists of neighbours")
    total = sum(map(len, graph.values()))
    if total > MOST_EDGES:
        raise ValueError(f"it has {total:,} neighbours, more than any of Planetoid's")
    numbers = all(
        type(node) is int and all(type(other) is int for other in near) for node, near in graph.items()
    )
    if not numbers:
        raise ValueError("its nodes are not whole numbers")
    source = np.repeat(
        np.fromiter(graph.keys(), np.int64, len(graph)),
        np.fromiter((len(near) for near in graph.values()), np.int64, len(graph)),
    )
    target = np.concatenate(
        [np.asarray(near, np.int64) for near in graph.values()] or [np.empty(0, np.int64)]
    )
    return np.stack([source, target], axis=1)


def _known(name: str) -> str:
    found = [known for known in NAMES if known.lower() == name.lower()]
    if not found:
        raise InputError(f"data.name=planetoid:{name} is not known; choose one of {', '.join(NAMES)}")
    return found[0]


def _load(folder: str, file: str) -> Any:
    try:
        content = storage.read_bytes(folder, file)
    except OSError:
        wanted = ", ".join(PARTS)
        raise InputError(
            f"{folder} has no file {file}; give the Planetoid root that holds <Name>/raw/ind.<name>.… ({wanted}),"
            " or say data.download=true"
        ) from None
    try:
        if file.endswith(".index"):
            return content.decode()
        return arrays_of_pickle(content)
    except Exception as error:  # whatever damaged bytes raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{folder}/{file} is not a raw file of Planetoid: {reason}") from None
