"""Edges between samples, from a file: npz, Parquet, or a raw graph of Planetoid.

Letters: N samples, E edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl.data import archives, planetoid, storage
from raysurl.errors import InputError

NAMES_IN_NPZ = ("edges", "edge_index")
ENDS = ("source", "target")


def own_graph(name: str, path: str | None, limit: int | None) -> str | None:
    """Where the edges of the data `data.name`, `data.path` are; None where data.path is yet to be named.

    Raises InputError for data that come with none, and for `data.limit`, which numbers the samples anew.
    """
    kind, _, which = name.partition(":")
    if kind not in ("planetoid", "npz"):
        raise InputError(
            f"data.name={name} comes with no graph; name a file of edges with method.structures.graph.path="
        )
    if limit is not None:
        raise InputError(
            f"data.limit={limit} takes a choice of the samples, and the graph of data.name={name} is between all;"
            " leave data.limit out"
        )
    if path is None:
        return None
    return (
        planetoid.graph_file(which, storage.absolute(path)) if kind == "planetoid" else storage.absolute(path)
    )


def read_edges(
    path: str, num_samples: int, key: str, *, lengths: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Edges (E, 2) without self loops, each pair as the file gives it, and their lengths (E,) where asked for.

    npz: `edges` (E, 2) or `edge_index` (2, E), and `distance` (E,); Parquet: columns source, target and distance;
    `ind.<name>.graph`: see raysurl.data.planetoid. Raises InputError for a file that is none of these, indices that
    are not in 0 … N−1, and lengths that are negative or not finite.
    """
    if storage.kind(path, key) != "file":
        raise InputError(f"{key}={path} must be a file: npz, Parquet, or ind.<name>.graph of Planetoid")
    where, given = f"{key}={path}", None
    if path.endswith(".parquet"):
        edges, given = _parquet(path, where, lengths)
    elif path.endswith(".graph"):
        edges = planetoid.edges_of(path)
    else:
        edges, given = _npz(path, where, lengths)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise InputError(f"{where}: edges must be integers (E, 2), not {edges.dtype} {edges.shape}")
    if len(edges) and not (edges.min() >= 0 and edges.max() < num_samples):
        raise InputError(
            f"{where}: edges must lie in 0 … {num_samples - 1}, they run from {edges.min()} to {edges.max()}"
        )
    if lengths and given is None:
        raise InputError(f"{where} gives no lengths; use length=features or length=equal")
    if given is not None and (
        given.shape != edges.shape[:1] or not (np.isfinite(given) & (given >= 0)).all()
    ):
        raise InputError(f"{where}: distance must be a finite length ≥ 0 for each of {len(edges)} edges")
    other = edges[:, 0] != edges[:, 1]
    return edges[other].astype(np.int64), None if given is None else given[other]


def _npz(path: str, where: str, lengths: bool) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    try:
        heads = archives.heads(path, "it")
    except InputError as error:
        raise InputError(f"{where} is not an npz file of a graph: {error}") from None
    name = next((name for name in NAMES_IN_NPZ if name in heads), None)
    if name is None:
        raise InputError(
            f"{where} is not an npz file of a graph: it has no array edges (E, 2) or edge_index (2, E)"
        )
    wanted: list[str | None] = [name, *(["distance"] if lengths and "distance" in heads else [])]
    archives.check_size(heads, wanted, where)
    edges, *rest = (archives.read(path, member, where) for member in wanted)
    try:
        given = np.asarray(rest[0], np.float64) if rest else None
    except (ValueError, TypeError):
        raise InputError(f"{where}: distance holds no numbers") from None
    return (edges.T if name == "edge_index" else edges), given


def _parquet(path: str, where: str, lengths: bool) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    try:
        with storage.opened(path, "") as stream, pq.ParquetFile(stream) as file:
            table = file.read()
    except storage.PARQUET_ERRORS as error:
        raise InputError(f"{where} is not a readable Parquet file: {error}") from None
    wanted = (*ENDS, *(["distance"] if lengths else []))
    if missing := [name for name in wanted if name not in table.column_names]:
        raise InputError(
            f"{where} has no column {missing[0]}; its columns are {', '.join(table.column_names)}"
        )
    if nulls := [name for name in wanted if table.column(name).null_count]:
        raise InputError(f"{where}: the column {nulls[0]} misses values")
    edges = np.stack([table.column(name).to_numpy() for name in ENDS], axis=1)
    try:
        return edges, table.column("distance").cast(pa.float64()).to_numpy() if lengths else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{where}: distance holds no numbers: {error}") from None
