"""The citation graphs Cora, CiteSeer and PubMed in the raw files of Planetoid (Yang et al. 2016).

`ROOT/<Name>/raw/ind.<name>.{x,tx,allx,y,ty,ally,graph,test.index}`. These are pickles of NumPy and SciPy arrays,
and a pickle may run any code: they are read by an unpickler that knows these arrays, dictionaries and lists alone.
The public split: the first 20 nodes of each class for training, the next 500 for validation, 1,000 for the test.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.errors import InputError

NAMES = ("Cora", "CiteSeer", "PubMed")
TRAIN, VALIDATION, TEST = 1, 2, 3
NUM_VALIDATION = 500
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
class Nodes:
    """The features of a graph's nodes, as an array that each process loads once."""

    name: str
    root: str

    def load(self) -> NDArray[np.float32]:
        return read(self.name, self.root).features


@lru_cache(maxsize=2)
def read(name: str, root: str) -> Citations:
    """Raises InputError for an unknown graph, or raw files that are missing or are not what they should be."""
    name = _known(name)
    folder = storage.join(storage.join(root, name), "raw")
    raw = {part: _load(folder, f"ind.{name.lower()}.{part}") for part in PARTS}
    try:
        return _assemble(raw)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
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
    test = np.array(raw["test.index"].split(), np.int64)
    first, last = int(test.min()), int(test.max())  # CiteSeer's isolated test nodes are missing in between
    known = raw["allx"].shape[0]
    if first != known or len(test) != raw["tx"].shape[0]:
        raise ValueError(f"{known} nodes of allx and the test nodes {first} … {last} do not fit")
    features = np.zeros((last + 1, raw["allx"].shape[1]), np.float32)
    labels = np.full(last + 1, -1, np.int64)
    features[:known], labels[:known] = raw["allx"].toarray(), raw["ally"].argmax(axis=1)
    features[test], labels[test] = raw["tx"].toarray(), raw["ty"].argmax(axis=1)
    split = np.zeros(last + 1, np.uint8)
    chosen = len(raw["y"])
    split[:chosen], split[chosen : min(chosen + NUM_VALIDATION, known)], split[test] = TRAIN, VALIDATION, TEST
    labels[:known][raw["ally"].sum(axis=1) == 0] = -1
    labels[test[raw["ty"].sum(axis=1) == 0]] = -1
    return Citations(features, labels, _edges(raw["graph"]), split)


def _edges(graph: Any) -> NDArray[np.int64]:
    if not isinstance(graph, dict):
        raise InputError("a raw graph of Planetoid is a dictionary of neighbours by node")
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
        return _Arrays(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # whatever damaged bytes raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{folder}/{file} is not a raw file of Planetoid: {reason}") from None


class _Arrays(pickle.Unpickler):
    """Knows what the raw files are made of, by the names that old versions gave them, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "_reconstruct": np.empty(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
            "csr_matrix": scipy.sparse.csr_matrix,
            "defaultdict": defaultdict,
            "list": list,
        }
        if name not in known or module.split(".")[0] not in ("numpy", "scipy", "collections", "__builtin__"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[name]
