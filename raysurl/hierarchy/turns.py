"""Whose turn it is: which of the clusters that batches touched an update reworks.

All of them, unless that would take longer than EFFORT allows for a level. Then those that have waited longest come
first and the others wait, together with their units that were hit. None of C clusters waits for more than ⌈C/m⌉
updates where an update reworks m of them. Of 1.28 million samples in 200,000 and 20,000 clusters, batch 4,096, an
update reworks at least 1,250 and 95: none waits for more than 160 and 210 updates, where an epoch has 312. Of 6,000
samples in 1,000 clusters none waits. `health/level{h}_longest_wait` tells for a run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysurl.compiled import compiled
from raysurl.hierarchy.forest import NONE, Forest, Ids
from raysurl.hierarchy.split import UNITS_PER_PROTOTYPE

# What an update may do on each level, in multiplications, of which a core does some 5·10^10 a second. To rework a
# cluster takes a fixed effort, some for each unit, more for each pair of units among which density peaks are sought,
# and D for each pair of a unit or piece with a sibling of the cluster.
EFFORT = 6 * 10**9
OF_A_CLUSTER, OF_A_UNIT, OF_A_PAIR = 4 * 10**6, 10**5, 10**3


def due(layers: Forest, layer: int, dim: int, *, most: int | None, prototypes: int, max_units: int) -> Ids:
    """Clusters (c,) of `layer` to rework now, at most `most`, the longest wait first; at least one if any waits."""
    capacity = layers.since.shape[1]
    waiting = np.flatnonzero(layers.since[layer])
    most = min(most or capacity, EFFORT // OF_A_CLUSTER)
    order = layers.since[layer, waiting].astype(np.int64) * capacity + waiting
    if len(waiting) > most:
        order = np.partition(order, most - 1)[:most]
    waiting = np.sort(order) % capacity
    units = layers.children[layer, waiting].astype(np.int64)
    siblings = layers.children[layer + 1, layers.parent[layer, waiting]]
    pieces = np.clip(units // UNITS_PER_PROTOTYPE, 2, prototypes)
    compared = siblings * (hits(layers, layer, waiting) + pieces)
    pairs = np.minimum(units, max_units) ** 2
    effort = np.cumsum(OF_A_CLUSTER + OF_A_UNIT * units + OF_A_PAIR * pairs + dim * compared)
    return waiting[: max(1, np.searchsorted(effort, EFFORT, side="right"))].astype(np.int32)


@compiled
def mark(layers: Forest, layer: int, nodes: Ids, step: int) -> None:
    """Nodes (n,) of `layer` were hit: their clusters wait to be reworked, if they do not wait already."""
    for i in range(len(nodes)):
        layers.hit[layer, nodes[i]] = True
        parent = layers.parent[layer, nodes[i]]
        if layers.since[layer + 1, parent] == 0:
            layers.since[layer + 1, parent] = step


@compiled
def hits(layers: Forest, layer: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many children of each of clusters (c,) of `layer` were hit -> (c,)."""
    out, hit, after = np.zeros(len(clusters), np.int64), layers.hit[layer - 1], layers.next[layer - 1]
    for i in range(len(clusters)):
        child = layers.first[layer, clusters[i]]
        while child != NONE:
            out[i] += hit[child]
            child = after[child]
    return out


@compiled
def take(layers: Forest, layer: int, clusters: Ids) -> Ids:
    """The children of clusters (c,) of `layer` that were hit -> (n,); none of them waits any more."""
    count = 0
    for i in range(len(clusters)):
        count += layers.children[layer, clusters[i]]
    out, size = np.empty(count, np.int32), 0
    for i in range(len(clusters)):
        layers.since[layer, clusters[i]] = 0
        child = layers.first[layer, clusters[i]]
        while child != NONE:
            if layers.hit[layer - 1, child]:
                layers.hit[layer - 1, child] = False
                out[size] = child
                size += 1
            child = layers.next[layer - 1, child]
    return out[:size]
