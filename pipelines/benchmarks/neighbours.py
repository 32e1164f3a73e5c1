"""What neighbour graphs cost: time, memory and recall of `knn_graph`, for clustered and for random unit vectors.

Each case runs in a process of its own, so that its peak of memory is its own: the column `memory` is what the process
held at most above what it held with the features loaded. `clustered` has N/100 centres and noise of length 0.6 around
each; `random` is uniform on the sphere, where cells tell nothing of neighbours, so that the search is exact after all.
The floor of exact search is 2·N²·D operations, 2.6 TFLOP at 100,000 × 128; DBSCAN reads the graph's N·k entries.
"""

from __future__ import annotations

import multiprocessing
import resource
import time

import numpy as np
from benchmarks._asked import asked_for
from numpy.typing import NDArray

from raysurl.hierarchy.dbscan import dbscan
from raysurl.neighbours import EXACT_BELOW, knn_graph


def main(arguments: list[str]) -> None:
    """`neighbours [samples=10000,100000] [dim=128] [k=32] [threads=1] [exact=false]`; samples=1000000 takes long.

    `exact=true` also measures exact search where cells are tried first, the rows `as chosen`.
    """
    given = asked_for(
        arguments, {"samples": "10000,100000", "dim": 128, "k": 32, "threads": 1, "exact": False}
    )
    dim, k, threads = (int(given[name]) for name in ("dim", "k", "threads"))
    samples = given["samples"]
    print(f"{k} nearest neighbours of unit vectors with {dim} dimensions, {threads} thread(s)")
    print(f"{'N':>9} {'vectors':10} {'search':12} {'graph':>9} {'memory':>9} {'recall':>7} {'DBSCAN':>8}")
    for n in [int(part) for part in str(samples).split(",")] if not isinstance(samples, list) else samples:
        for kind in ("clustered", "random"):
            for exact in (None, True) if given["exact"] and n >= EXACT_BELOW else (None,):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, mib, recall, dbscan_s = pool.apply(measure, (n, dim, k, threads, kind, exact))
                search = "exact" if exact or n < EXACT_BELOW else "as chosen"
                print(
                    f"{n:9,} {kind:10} {search:12} {seconds:7.2f} s {mib:5.0f} MiB {recall:7.3f} {dbscan_s:6.2f} s",
                    flush=True,
                )


def measure(
    n: int, dim: int, k: int, threads: int, kind: str, exact: bool | None
) -> tuple[float, float, float, float]:
    """Seconds of the graph, MiB it took, its recall, and seconds of DBSCAN on it with the radius 0.7."""
    import faiss

    faiss.omp_set_num_threads(threads)
    features = vectors(n, dim, kind)
    knn_graph(features[: 4 * k], k, exact=True)  # loads what is loaded at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.perf_counter()
    graph = knn_graph(features, k, exact=exact)
    seconds = time.perf_counter() - since
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.perf_counter()
    dbscan(graph, radius=0.7)
    return seconds, (after - before) / 1024, graph.recall, time.perf_counter() - since


def vectors(n: int, dim: int, kind: str) -> NDArray[np.float32]:
    """Unit rows (n, dim), made block by block so that making them is not the peak of memory."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(1, n // 100), dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = np.empty((n, dim), np.float32)
    for start in range(0, n, 16384):
        out = rows[start : start + 16384]
        out[:] = random.normal(size=out.shape)
        if kind == "clustered":
            out *= 0.6 / dim**0.5
            out += centres[random.integers(0, len(centres), len(out))]
        out /= np.linalg.norm(out, axis=1, keepdims=True)
    return rows
