"""kNN classification beside other libraries: seconds, and MiB over the data, in one run.

Random unit vectors, 50,000 of a bank and 10,000 queries of 512 values, ten classes, k = 200, two threads. Each case
runs in a process of its own, so that its peak of memory is its own; cases take turns, and a row is the median of
`runs`. `faiss flat` is its search and our votes on what it finds, `lightly` its `knn_predict` on blocks of 1,024
queries, `scikit-learn` a KNeighborsClassifier with cosine distances and the same weights. The last column is the share
of queries whose class is ours.

The floor is the product, 2·N·Q·D = 512 GFLOP; the row `products alone` is that, by torch, in blocks. Goal: the seconds
of faiss, and 150 MiB.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for
from benchmarks._kept import FOLDER, Rows, keep, where
from torch import Tensor

from raysurl.evaluate import knn_classify, nearest
from raysurl.evaluate.knn import vote

FILE = FOLDER / "knn.json"
CLASSES, TAU = 10, 0.1
Data = tuple[Tensor, Tensor, Tensor]


def main(arguments: list[str]) -> None:
    """`knn [bank=50000] [queries=10000] [dim=512] [k=200] [threads=2] [runs=3] [device=cpu] [out=FILE.json]`."""
    given = asked_for(
        arguments,
        {"bank": 50_000, "queries": 10_000, "dim": 512, "k": 200, "threads": 2, "runs": 3, "device": "cpu",
         "out": FILE},
    )  # fmt: skip
    shape = tuple(int(given[name]) for name in ("bank", "queries", "dim", "k", "threads"))
    cases = [name for name in CASES if given["device"] == "cpu" or name in ("raysurl", "products alone")]
    if not importlib.util.find_spec("lightly"):
        print("lightly is left out: it is not installed")
        cases.remove("lightly")
    row = compared(cases, shape, int(given["runs"]), str(given["device"]))
    said = f"{shape[0]:,} × {shape[1]:,} × {shape[2]}, k = {shape[3]}, {shape[4]} threads, {given['device']}"
    keep(Path(given["out"]), said, {"cases": row}, str(given["device"]), page)
    print(table(said, row))


def compared(
    cases: Sequence[str], shape: tuple[int, ...], runs: int, device: str
) -> dict[str, dict[str, Any]]:
    """Of each case, which take turns: its seconds, MiB, and the share of classes that are ours."""
    found: dict[str, list[tuple[float, float, Tensor | None]]] = {name: [] for name in cases}
    for _ in range(runs):
        for name in cases:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(measure, (name, shape, device)))
    ours = found["raysurl"][0][2]
    return {name: summary(runs_of, ours) for name, runs_of in found.items()}


def summary(runs: list[tuple[float, float, Tensor | None]], ours: Tensor | None) -> dict[str, Any]:
    seconds, predicted = [run[0] for run in runs], runs[0][2]
    same = None if predicted is None or ours is None else round((predicted == ours).double().mean().item(), 4)
    return {
        "seconds": [round(s, 2) for s in seconds],
        "MiB": round(max(run[1] for run in runs)),
        "as ours": same,
    }


def page(rows: Rows) -> str:
    lines = ["# kNN beside other libraries", ""]
    for said, row in rows.items():
        cases = row["cases"]
        each = [
            f"{name} {statistics.median(c['seconds']):.2f} s and {c['MiB']} MiB" for name, c in cases.items()
        ]
        lines.append(f"> {said}: {', '.join(each)}.")
    lines += ["", *[line for said, row in rows.items() for line in (table(said, row["cases"]), "")]]
    return "\n".join(
        [*lines, f"`python pipelines/benchmark.py knn`, which says what is measured. {where(rows)}", ""]
    )


def table(said: str, cases: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"| {said} | seconds, median | range | MiB over the data | classes as ours |",
        "|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        seconds, same = case["seconds"], "" if case["as ours"] is None else f"{case['as ours']:.4f}"
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {spread} | {case['MiB']} | {same} |")
    return "\n".join(lines)


def measure(name: str, shape: tuple[int, ...], device: str) -> tuple[float, float, Tensor | None]:
    """Seconds, MiB held at most above what the data takes, and predictions (Q,)."""
    import faiss

    n, q, dim, k, threads = shape
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(rows, dim, generator=generator) for rows in (n, q))
    for rows in (bank, queries):
        rows /= rows.norm(dim=1, keepdim=True)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    data = bank.to(device), labels.to(device), queries.to(device)
    nearest.COMPILED_FROM = 0  # of the first call too, which loads what is loaded at first use
    CASES[name]((data[0][: 4 * k], data[1][: 4 * k], data[2][:8]), k)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.perf_counter()
    predicted = CASES[name](data, k)
    if predicted is not None:
        predicted = predicted.cpu()  # waits for the device
    seconds = time.perf_counter() - since
    if device != "cpu":
        return seconds, (torch.cuda.max_memory_allocated() - held) / 2**20, predicted
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, predicted


def of_raysurl(data: Data, k: int) -> Tensor:
    bank, labels, queries = data
    return knn_classify(bank, labels, queries, k=k, tau=TAU, num_classes=CLASSES)


def of_faiss(data: Data, k: int) -> Tensor:
    import faiss

    bank, labels, queries = (rows.numpy() for rows in data)
    similarity, found = faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)
    return vote(torch.from_numpy(similarity), torch.from_numpy(labels[found]), TAU, CLASSES)


def of_lightly(data: Data, k: int) -> Tensor:
    from lightly.utils.benchmarking import knn_predict

    bank, labels, queries = data
    columns = bank.T.contiguous()
    parts = [
        knn_predict(part, columns, labels, num_classes=CLASSES, knn_k=k, knn_t=TAU)[:, 0]
        for part in queries.split(1024)
    ]
    return torch.cat(parts)


def of_scikit_learn(data: Data, k: int) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    bank, labels, queries = (rows.numpy() for rows in data)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / TAU)

    model = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute", n_jobs=-1)
    return torch.from_numpy(model.fit(bank, labels).predict(queries))


def products_alone(data: Data, k: int) -> None:
    bank, _, queries = data
    for part in queries.split(2048):
        for rows in bank.split(2048):
            part @ rows.T
    part.sum().item()


CASES: dict[str, Callable[[Data, int], Tensor | None]] = {
    "raysurl": of_raysurl,
    "faiss flat": of_faiss,
    "lightly": of_lightly,
    "scikit-learn": of_scikit_learn,
    "products alone": products_alone,
}
