"""What the online hierarchy costs, beside clustering from scratch, and what it recovers (benchmarks/recovery.py).

`cost`: N samples in 0.156·N clusters and a tenth as many above them (200,000 and 20,000 at N = 1.28·10^6), L = 3. A
batch of new features is drawn around the samples' clusters. An update's time is the median after two warm-up
updates, on the clock and of the processor; where others use the machine too, the second is what the update takes.
`sums` is what recomputing all sums costs, once per N updated samples. `held` is what the process holds more than
before the data was made, after updates and with the data given back; `peak` is the most the process ever held, with
libraries and the N × D features that it began from.

`offline`: faiss K-means, DBSCAN on a neighbour graph (the classes of rcl.offline) and the warm start of the
same samples, K-means with as many clusters as the tree has, while those are at most 10,000. What is larger is
extrapolated and labelled so: K-means as N·k, DBSCAN as the power of N that joins the last two sizes. (Above 50,000
samples the graph is approximate, which is faster than that.) Times are of the processor, all threads together.

Each size runs in a process of its own. Tables are Markdown; all values go to results/benchmarks/hierarchy.json.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import recovery
from benchmarks._asked import asked_for
from benchmarks.recovery import row
from numpy.typing import NDArray

from raysurl.errors import InputError
from raysurl.train.run_directory import commit, hardware

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "hierarchy.json"
LARGEST = 1_280_000
SHARE, ABOVE = 200_000 / LARGEST, 10  # clusters per sample, and clusters per cluster above
GOALS = f"goals on two cores at N = {LARGEST:,}, batch 4,096, 200,000 and 20,000 clusters: ≤ 300 ms, ≤ 3.5 GB"
WARM_UP, BLOCK = 2, 20_000
PARTS = ("cost", "offline", "recovery")


def main(arguments: list[str]) -> None:
    """`hierarchy [part=cost|offline|recovery] [runs=9] [threads=1] [epochs=10] [seeds=[11]] [sizes=…] [batches=…]`.

    Without `part` all three are measured; a part that is not measured keeps its values in the file.
    """
    given = asked_for(
        arguments,
        {
            "part": "all",
            "runs": 9,
            "threads": 1,
            "dim": 256,
            "sizes": [10_000, 40_000, 160_000, 640_000, LARGEST],
            "batches": [256, 1024, 4096],
            "offline": [8_000, 16_000, 32_000],
            "epochs": 10,
            "seeds": [11],
        },
    )
    if given["part"] not in ("all", *PARTS):
        raise InputError(f"part={given['part']} is none of {', '.join(PARTS)}")
    what = f"{hardware(torch.device('cpu'))}, {given['threads']} thread(s), commit `{commit()}`"
    print(f"{what}; {GOALS}")
    record = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for name, measure in _PARTS.items():
        if given["part"] in ("all", name):
            record[name] = {"measured_on": what, "date": time.strftime("%Y-%m-%d"), **measure(given)}
            FILE.parent.mkdir(exist_ok=True)
            FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process, so that one measurement's memory is not another's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


class Planted:
    """A tree of N samples: `labels` (2, N) of levels 2 and 3; features are drawn when they are asked for."""

    def __init__(self, number: int, dim: int) -> None:
        self.random = np.random.default_rng(0)
        clusters = max(round(number * SHARE), 2)
        tops = max(clusters // ABOVE, 1)
        parent = np.arange(clusters) % tops
        self.centres = self._normal(tops, dim)[parent] + 0.7 * self._normal(clusters, dim)
        cluster = np.arange(number) % clusters
        self.labels = np.stack([cluster, parent[cluster]])

    def features(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = self._normal(len(index), self.centres.shape[1])
        rows *= 0.6
        rows += self.centres[self.labels[0, index]]
        return rows

    def all(self) -> NDArray[np.float32]:
        rows = np.empty((self.labels.shape[1], self.centres.shape[1]), np.float32)
        for start in range(0, len(rows), BLOCK):
            rows[start : start + BLOCK] = self.features(np.arange(start, min(start + BLOCK, len(rows))))
        return rows

    def _normal(self, number: int, dim: int) -> NDArray[np.float32]:
        return self.random.standard_normal((number, dim), np.float32) / np.float32(math.sqrt(dim))


# -------------------------------------------------------------------- cost of an update


def cost(given: dict[str, Any]) -> dict[str, Any]:
    print(
        f"\nTime per update of the online hierarchy, median of {given['runs']}, D = {given['dim']}, L = 3\n"
    )
    batches = [int(b) for b in given["batches"]]
    head = ["N", "clusters", *(f"batch {b:,}" for b in batches), "sums", "begin", "held", "peak"]
    print(row(head), row(["---"] * len(head)), sep="\n")
    lines = []
    for number in given["sizes"]:
        fitting = [b for b in batches if b <= number]
        line = alone(
            updates, int(number), int(given["dim"]), fitting, int(given["runs"]), int(given["threads"])
        )
        lines.append(line)
        times = (line["update_ms"].get(str(b)) for b in batches)
        cells = ["–" if t is None else f"{t['clock']:.0f} ms (CPU {t['cpu']:.0f} ms)" for t in times]
        clusters = "{:,} / {:,}".format(*line["clusters"])
        seconds = (f"{line['sums_s']:.2f} s", f"{line['begin_s']:.1f} s")
        memory = (f"{line['held_gb']:.2f} GB", f"{line['peak_gb']:.2f} GB")
        print(row([f"{number:,}", clusters, *cells, *seconds, *memory]), flush=True)
    _growth(lines, batches)
    return {"lines": lines}


def updates(number: int, dim: int, batches: list[int], runs: int, threads: int) -> dict[str, Any]:
    """`update_ms`: batch -> medians `clock` and `cpu`, `least` of the clock; one hierarchy sees all batch sizes."""
    limit(threads)
    from raysurl.hierarchy import Hierarchy, forest

    _compile(dim)
    tree = Planted(number, dim)
    gc.collect()
    before = memory_gb("VmRSS")
    hierarchy = Hierarchy(number, dim, seed=0)
    rows = tree.all()
    since = time.perf_counter()
    hierarchy.begin(rows, tree.labels)
    begin_s = time.perf_counter() - since
    del rows
    found: dict[str, dict[str, float]] = {}
    for batch in batches:
        clock, cpu = [], []
        for _ in range(WARM_UP + runs):
            index = tree.random.choice(number, batch, replace=False)
            features = tree.features(index)
            since, cpu_since = time.perf_counter(), time.process_time()
            hierarchy.update(index, features)
            clock.append(1e3 * (time.perf_counter() - since))
            cpu.append(1e3 * (time.process_time() - cpu_since))
        clock, cpu = clock[WARM_UP:], cpu[WARM_UP:]
        medians = {"clock": statistics.median(clock), "cpu": statistics.median(cpu)}
        found[str(batch)] = {**medians, "least": min(clock)}
    since = time.perf_counter()
    forest.recompute_sums(hierarchy._layers, hierarchy._features, hierarchy.levels)
    sums_s = time.perf_counter() - since
    gc.collect()
    return {
        "number": number,
        "clusters": [len(hierarchy.clusters(level)) for level in (2, 3)],
        "update_ms": found,
        "sums_s": sums_s,
        "begin_s": begin_s,
        "held_gb": memory_gb("VmRSS") - before,
        "peak_gb": memory_gb("VmHWM"),
    }


def _compile(dim: int) -> None:
    """Load what is compiled, so that it is not part of what a hierarchy holds."""
    from raysurl.hierarchy import Hierarchy

    tree = Planted(1000, dim)
    hierarchy = Hierarchy(1000, dim)
    hierarchy.begin(tree.all(), tree.labels)
    hierarchy.update(np.arange(100), tree.features(np.arange(100)))


def _growth(lines: list[dict[str, Any]], batches: list[int]) -> None:
    if len(lines) < 2:
        return
    small, large = lines[0], lines[-1]
    ratio = large["number"] / small["number"]
    common = [b for b in batches if str(b) in small["update_ms"]]
    exponents = ", ".join(
        f"{math.log(large['update_ms'][str(b)]['cpu'] / small['update_ms'][str(b)]['cpu'], ratio):.2f} at batch {b:,}"
        for b in common
    )
    held = 1e9 * large["held_gb"] / large["number"]
    print(f"\nFrom the least to the largest N an update's CPU time grows as N to the power of {exponents}.")
    print(f"At the largest N a sample takes {held:,.0f} bytes, its feature among them.")


# -------------------------------------------------------------------- clustering from scratch


def offline(given: dict[str, Any]) -> dict[str, Any]:
    print(
        f"\nClustering all samples from scratch, both levels, D = {given['dim']}; seconds of the processor\n"
    )
    head = ("N", "clusters", "K-means", "DBSCAN", "warm start of the hierarchy", "recall of the graph")
    print(row(head), row(["---"] * len(head)), sep="\n")
    lines = []
    for number in given["offline"]:
        line = alone(from_scratch, int(number), int(given["dim"]), int(given["threads"]))
        lines.append(line)
        seconds = (f"{line[name]:.1f} s" for name in ("kmeans_s", "dbscan_s", "fit_s"))
        clusters = "{:,} / {:,}".format(*line["clusters"])
        print(row([f"{number:,}", clusters, *seconds, f"{line['recall']:.3f}"]), flush=True)
    if len(lines) > 1:
        guesses = _extrapolated(lines[-2], lines[-1])
        kmeans, paper, dbscan = (f"{guesses[name] / 3600:,.1f} h" for name in guesses)
        print(row([f"{LARGEST:,} (extrapolated)", "200,000 / 20,000", kmeans, dbscan, "–", "–"]))
        print(f"\nK-means with the paper's 1,000,000, 500,000 and 250,000 clusters (extrapolated): {paper}")
        return {"lines": lines, "extrapolated": guesses}
    return {"lines": lines}


def from_scratch(number: int, dim: int, threads: int) -> dict[str, Any]:
    limit(threads)
    from raysurl.hierarchy import Hierarchy
    from raysurl.methods.rcl.offline import DensityLabels, KMeansLabels

    _compile(dim)
    tree = Planted(number, dim)
    rows = tree.all()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clusters = [int(labels.max()) + 1 for labels in tree.labels]
    radii = [float(np.sqrt(2 - 2 * sigma)) for sigma in recovery.DEFAULT]
    kmeans = KMeansLabels(number, shares=[k / number for k in clusters], seed=0)
    dbscan = DensityLabels(number, radii=radii, seed=0)
    seconds = {}
    for name, made in {"kmeans_s": kmeans, "dbscan_s": dbscan, "fit_s": Hierarchy(number, dim)}.items():
        since = time.process_time()
        made.fit(rows)  # type: ignore[attr-defined]
        seconds[name] = time.process_time() - since
    return {"number": number, "clusters": clusters, "recall": dbscan.recall, **seconds}


def _extrapolated(before: dict[str, Any], last: dict[str, Any]) -> dict[str, float]:
    """Seconds at N = 1.28·10^6: K-means with the tree's clusters, with the paper's, and DBSCAN."""
    work = last["number"] * sum(last["clusters"])
    power = math.log(last["dbscan_s"] / before["dbscan_s"], last["number"] / before["number"])
    return {
        "kmeans_s": last["kmeans_s"] * LARGEST * 220_000 / work,
        "kmeans_paper_s": last["kmeans_s"] * LARGEST * 1_750_000 / work,
        "dbscan_s": last["dbscan_s"] * (LARGEST / last["number"]) ** power,
    }


# -------------------------------------------------------------------- this process


def limit(threads: int) -> None:
    import faiss
    from threadpoolctl import threadpool_limits

    import raysurl.hierarchy  # noqa: F401  what it loads is limited too

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads)


def memory_gb(field: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise InputError("memory is measured on Linux only: /proc/self/status has no " + field)


_PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "cost": cost,
    "offline": offline,
    "recovery": lambda given: recovery.measure(int(given["epochs"]), [int(s) for s in given["seeds"]]),
}
