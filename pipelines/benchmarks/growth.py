"""How GenURL grows with the number of points N: time and memory of the kNN graph, and of an epoch in mini-batches.

Random features, the hardest case for a neighbour search: cells tell nothing, so that it is exact, 2·N²·D operations.
`clustered=true` draws N/100 clusters instead. Each size runs in a process of its own, so that its peak of memory is its
own: the column is what the process held at most above what it held with the features loaded. Nothing of N×N values is
made: at N = 10^6 such a matrix would take 3,700 GiB.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks._asked import asked_for

from raysurl.build import resolve
from raysurl.data.shards import Shard
from raysurl.data.source import ResidentSource, SourceFacts
from raysurl.recipe import load_recipe
from raysurl.runtime import LocalRuntime


def main(arguments: list[str]) -> None:
    """`growth [samples=10000,100000] [dim=32] [batch_size=1024] [threads=1] [clustered=false]`; 1000000 takes long."""
    given = asked_for(
        arguments,
        {
            "samples": "10000,100000",
            "dim": 32,
            "batch_size": 1024,
            "threads": 1,
            "clustered": False,
        },
    )
    dim, batch, threads = (int(given[name]) for name in ("dim", "batch_size", "threads"))
    print(f"{dim} features, batches of {batch}, {threads} thread(s), clustered={given['clustered']}")
    print(f"{'N':>9} {'graph':>10} {'memory':>10} {'epoch':>10} {'memory':>10} {'pairs found':>12}")
    samples = given["samples"]
    for n in [int(part) for part in str(samples).split(",")] if not isinstance(samples, list) else samples:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (n, dim, batch, threads, bool(given["clustered"])))
        print(
            f"{n:9,} {row[0]:8.1f} s {row[1]:6.0f} MiB {row[2]:8.1f} s {row[3]:6.0f} MiB {row[4]:12.1%}",
            flush=True,
        )


def measure(
    n: int, dim: int, batch: int, threads: int, clustered: bool
) -> tuple[float, float, float, float, float]:
    """Seconds and MiB of the graph, seconds and MiB of an epoch, share of the graph's edges within a batch."""
    import faiss

    from raysurl.train import trainer

    faiss.omp_set_num_threads(threads)
    random = np.random.default_rng(0)
    rows = random.normal(size=(n, dim)).astype(np.float32)
    if clustered:
        rows = (
            0.1 * rows
            + random.normal(size=(n // 100 or 1, dim)).astype(np.float32)[np.arange(n) % (n // 100 or 1)]
        )
    source = ResidentSource([Shard(rows)], SourceFacts(np.ones(n, bool), (), None, None, "resident"))
    changes = ("data.path=.", f"train.batch_size={batch}", "train.epochs=1", f"scale.threads={threads}")
    quiet = ("log.tensorboard=false", "checkpoint.every_epochs=0", "eval.protocols=[]")
    recipe = resolve(load_recipe(["recipe=genurl/mnist_2d", *changes, *quiet]), dim)
    with tempfile.TemporaryDirectory() as folder:
        run = trainer.start(recipe, LocalRuntime(torch.device("cpu")), source, None, Path(folder))
        before, since = _peak(), time.perf_counter()
        trainer.refresh_memory(run)
        graph_s, graph_mib = time.perf_counter() - since, _peak() - before
        assert run.plan.graph is not None
        order = run.plan.order(0)
        place = np.empty(n, np.int64)
        place[order] = np.arange(n) // batch
        near = run.plan.graph[:, 0]
        found = float((place[near] == place).mean())
        before, since = _peak(), time.perf_counter()
        trainer.train_epoch(run)
        return graph_s, graph_mib, time.perf_counter() - since, _peak() - before, found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
