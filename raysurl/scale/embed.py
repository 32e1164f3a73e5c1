"""Embedding on a cluster: workers of a pool of Ray Data, each with the encoder, make the parts of a file of embeddings.

Data that fit into the object store are decoded once and shared; other data are read by the worker that embeds them. The
driver writes the parts, so that no folder needs to be seen by every node but that of the data.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

from raysurl.curation.embedding import Unit, embedded
from raysurl.data.dataset import Samples
from raysurl.encoder import TrainedEncoder
from raysurl.recipe import Data
from raysurl.runtime import named_device
from raysurl.scale import cluster, joining
from raysurl.scale.data import PreparedSplit, prepare_split
from raysurl.scale.stream import failure

BLOCK_BYTES = 2**31  # a part stays one block, whatever the encoder's width


class Pool:
    """Connects, and decodes or verifies the data. Raises InputError where the cluster cannot hold the workers."""

    def __init__(self, found: TrainedEncoder, samples: Samples, workers: int) -> None:
        joining.connect()
        nodes = cluster.alive()
        self.gpus = 1 if any(node.get("GPU", 0) for node in nodes) else 0
        cores = [int(node.get("CPU", 0)) for node in nodes]
        self.threads = 1 if self.gpus else cluster.threads_each(cores, workers)
        cluster.check_room("workers", workers, self.threads, self.gpus)
        self.workers, self.data = workers, found.recipe.data
        self.split = prepare_split(self.data, samples)
        self.source = self.split.open_alone(self.data)
        self.shared = ray.put((replace(found, encoder=found.encoder.cpu()), samples))

    def tables(self, units: Sequence[Unit]) -> Iterator[tuple[int, Any]]:
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        if not units:
            return
        with DataContext.current(context):
            rows = [{"unit": pickle.dumps(unit)} for unit in units]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Embedder,
                fn_constructor_args=(self.shared, self.split, self.data, self.threads, bool(self.gpus)),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=self.threads,
                num_gpus=self.gpus,
                compute=ActorPoolStrategy(size=min(self.workers, len(rows))),
            )
            bundles = dataset.iter_internal_ref_bundles()
        try:
            for bundle in bundles:
                for block in bundle.block_refs:
                    table = ray.get(block)
                    if len(table):
                        yield table["part"][0].as_py(), table.drop_columns("part")
        except ray.exceptions.RayError as error:
            raise failure(error) from error


class Embedder:
    """One worker of the pool."""

    def __init__(self, shared: Any, split: PreparedSplit, data: Data, threads: int, on_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self.found, self.samples = ray.get(shared)
        self.device = named_device("cuda" if on_gpu else "cpu")
        self.found.encoder.to(self.device)
        self.source = split.open_alone(data)

    def __call__(self, given: pa.Table) -> pa.Table:
        number, some = pickle.loads(given["unit"][0].as_py())
        table = embedded(self.found, self.source, self.samples, some, self.device)
        return table.append_column("part", pa.array([number] * len(table)))
