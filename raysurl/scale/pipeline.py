"""Ray Data as this program uses it: a list of units mapped by plain functions, in exact order.

What is measured and why each setting is there:

- Order. `preserve_order` must be on the context that the data set is created with; set later it does nothing.
- CPUs. Training workers may hold every CPU of a cluster, and a data task that asks for one would then wait for
  ever without an error. So a task asks for a CPU only where there is one to spare for each rank, and for none
  otherwise; how many run at once is bounded in both cases. Tasks that ask for nothing always start: there is no
  cluster on which a pipeline hangs, and so nothing to check beforehand.
- Memory. Each pipeline may hold its share of the object store, not half of it each, which is Ray's default.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

Tables = Iterator[Any]  # Arrow tables

# pools are sized for the cluster, whatever the number of units
warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")

STORE_SHARE = 0.3  # of the object store, for all pipelines of a run together
_BLOCK_BYTES = 4 * 2**20  # small blocks: many tasks in parallel, a short wait for the first batch
_MOST_BLOCKS = 256  # input blocks of a pipeline; each costs about a millisecond to create


@dataclass(frozen=True)
class Budget:
    """CPUs that each data task asks for, how many run at once, and object store bytes of one pipeline."""

    num_cpus: float
    tasks: int
    store: int


def budget(pipelines: int = 1) -> Budget:
    """One pipeline's part of the CPUs that are free now and of the object store."""
    free = ray.available_resources().get("CPU", 0.0) / pipelines
    store = ray.cluster_resources().get("object_store_memory", 0.0) * STORE_SHARE / pipelines
    return Budget(1 if free >= 1 else 0, max(1, int(free)), int(store))


def run(
    units: Sequence[Any],
    stages: Sequence[Callable[[Any], Tables]],
    limits: Budget,
    *,
    readers: int | None = None,
) -> Iterator[Any]:
    """References to the tables that the last stage yields, in the order of the units.

    `readers`: how many tasks of a first stage that only reads run at once; each holds a unit's samples.
    Each stage (see raysurl.scale.tasks) is called with a table of one row and yields tables; the first finds
    its unit pickled in the column `unit`.
    """
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=limits.store
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised anyway
    readers = readers or (
        3 if limits.tasks == 2 else 2
    )  # stages whose numbers of tasks agree would be fused into one
    with DataContext.current(context):
        rows = [{"unit": pickle.dumps(unit)} for unit in units]
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS))
        for i, stage in enumerate(stages):
            reads = i == 0 and len(stages) > 1  # waits for storage more than it computes
            dataset = dataset.map_batches(
                stage,
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=limits.num_cpus / 4 if reads else limits.num_cpus,
                compute=TaskPoolStrategy(size=readers if reads else limits.tasks),
            )
        bundles = dataset.iter_internal_ref_bundles()
    for bundle in bundles:
        yield from bundle.block_refs
