"""The forest under a hierarchy: nodes of each level in flat arrays, with parent pointers and child lists.

Layer 0 holds the N samples, layers 1 … L−1 the clusters of levels 2 … L, layer L a single root. A node knows its
parent, so a sample's label is found by following L−1 pointers, and two samples that share a cluster share every
coarser one. Children form a doubly linked list, so that moving a node costs no search. A cluster keeps the sum of
its samples' features; one of a single sample keeps none and reads the sample's row, because after density clustering
most clusters may be such singletons. Features are kept in half precision (as bits: compiled code has no half floats).

Letters: N samples, D dimensions, L levels, u children of a cluster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysurl.compiled import compiled

Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
NONE = -1


class Forest(NamedTuple):
    """Nodes of all levels, a row of ids per layer 0 … L; a layer of fewer nodes has the rest of its ids free.

    One tuple of matrices, not one of a tuple per layer: each function takes it, and is compiled for all its fields.
    """

    parent: Ids  # (L+1, N) id in the layer above; NONE for an id that is free
    next: Ids  # (L+1, N) the siblings' list
    prev: Ids
    first: Ids  # (L+1, N) head of the children's list, in the layer below; NONE for a sample
    children: Ids  # (L+1, N) their number
    samples: Ids  # (L+1, N) their number
    hit: NDArray[np.bool_]  # (L+1, N) it changed, and its cluster above has not been reworked since
    since: Ids  # (L+1, N) step at which the first such child was hit, 0 = none waits
    free: Ids  # (L+1, N) stack of free ids …
    free_size: NDArray[np.int64]  # (L+1,) … and its height
    sums: Rows  # (L, N, D) sum of the samples' features, where there are two or more; nothing for layer 0 and the root


class FeatureStore(NamedTuple):
    """The latest feature of every sample."""

    bits: NDArray[np.uint16]  # (N, D) half floats
    floats: Rows  # (65536,) what each bit pattern means


# numba's caches on disk of before these were renamed load by such names, and are then made anew
Features = Layer = FeatureStore


def empty_forest(num_samples: int, dim: int, levels: int) -> Forest:
    """Every id free; rows of `sums` cost memory only once they are written."""
    shape = levels + 1, num_samples
    layers = Forest(
        parent=np.full(shape, NONE, np.int32),
        next=np.full(shape, NONE, np.int32),
        prev=np.full(shape, NONE, np.int32),
        first=np.full(shape, NONE, np.int32),
        children=np.zeros(shape, np.int32),
        samples=np.zeros(shape, np.int32),
        hit=np.zeros(shape, np.bool_),
        since=np.zeros(shape, np.int32),
        free=np.tile(np.arange(num_samples - 1, -1, -1, dtype=np.int32), (levels + 1, 1)),
        free_size=np.full(levels + 1, num_samples),
        sums=np.zeros((levels, num_samples, dim), np.float32),
    )
    layers.samples[0] = 1
    return layers


def empty_features(num_samples: int, dim: int) -> FeatureStore:
    floats = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
    return FeatureStore(np.zeros((num_samples, dim), np.uint16), floats)


@compiled
def ancestor(layers: Forest, node: int, low: int, high: int) -> int:
    """The node of layer `high` above a node of layer `low`."""
    for layer in range(low, high):
        node = layers.parent[layer, node]
    return node


@compiled
def ancestors(layers: Forest, samples: NDArray[np.int64], high: int) -> Ids:
    """Samples (B,) -> their nodes (B,) in layer `high`."""
    out = np.empty(len(samples), np.int32)
    for i in range(len(samples)):
        out[i] = ancestor(layers, samples[i], 0, high)
    return out


@compiled
def read(layers: Forest, features: FeatureStore, layer: int, node: int, out: Rows) -> None:
    """The sum of a node's features -> out (D,)."""
    if layer > 0 and layers.samples[layer, node] > 1:
        for d in range(len(out)):  # here and below: numba is far longer at compiling a slice's assignment
            out[d] = layers.sums[layer, node, d]
        return
    while layer > 0:
        node = layers.first[layer, node]
        layer -= 1
    for d in range(len(out)):
        out[d] = features.floats[features.bits[node, d]]


@compiled
def read_all(layers: Forest, features: FeatureStore, layer: int, nodes: Ids) -> Rows:
    """Sums of several nodes -> (n, D)."""
    out = np.empty((len(nodes), features.bits.shape[1]), np.float32)
    samples, sums = layers.samples[layer], layers.sums[layer]
    for i in range(len(nodes)):
        if layer > 0 and samples[nodes[i]] > 1:
            for d in range(out.shape[1]):
                out[i, d] = sums[nodes[i], d]
        else:
            read(layers, features, layer, nodes[i], out[i])
    return out


@compiled
def children(layers: Forest, layer: int, node: int) -> Ids:
    """Ids, in the layer below, of a node's children."""
    out = np.empty(layers.children[layer, node], np.int32)
    child, after = layers.first[layer, node], layers.next[layer - 1]
    for i in range(len(out)):
        out[i] = child
        child = after[child]
    return out


@compiled
def ascending(values: NDArray[Any]) -> NDArray[np.int64]:
    """The order of values (n,), equal ones as they stand; in one type, for which alone sorting is compiled."""
    return np.argsort(values.astype(np.float64), kind="mergesort")


@compiled
def allocate(layers: Forest, layer: int) -> int:
    """An id that was free; it has neither parent nor children yet."""
    layers.free_size[layer] -= 1
    node = layers.free[layer, layers.free_size[layer]]
    layers.first[layer, node], layers.children[layer, node], layers.samples[layer, node] = NONE, 0, 0
    return node


@compiled
def release(layers: Forest, layer: int, node: int) -> None:
    """Give back a cluster that has no children left."""
    unlink(layers, layer, node)
    layers.parent[layer, node] = NONE
    layers.samples[layer, node] = 0
    layers.hit[layer, node], layers.since[layer, node] = False, 0
    layers.free[layer, layers.free_size[layer]] = node
    layers.free_size[layer] += 1


@compiled
def link(layers: Forest, layer: int, node: int, parent: int) -> None:
    """Put a node at the head of a parent's list. Counts and sums are the caller's."""
    head = layers.first[layer + 1, parent]
    layers.parent[layer, node], layers.next[layer, node], layers.prev[layer, node] = parent, head, NONE
    if head != NONE:
        layers.prev[layer, head] = node
    layers.first[layer + 1, parent] = node
    layers.children[layer + 1, parent] += 1


@compiled
def unlink(layers: Forest, layer: int, node: int) -> None:
    before, after = layers.prev[layer, node], layers.next[layer, node]
    if before != NONE:
        layers.next[layer, before] = after
    else:
        layers.first[layer + 1, layers.parent[layer, node]] = after
    if after != NONE:
        layers.prev[layer, after] = before
    layers.children[layer + 1, layers.parent[layer, node]] -= 1


@compiled
def move(layers: Forest, features: FeatureStore, layer: int, node: int, to: int, x: Rows, y: Rows) -> None:
    """Move a node to another cluster of the same grandparent; a cluster left empty is given back.

    `x` and `y` (D,) are scratch.
    """
    old, samples = above_of(layers, layer, node), layers.samples[layer, node]
    read(layers, features, layer, node, x)
    if layers.samples[layer + 1, old] > samples:
        read(layers, features, layer + 1, old, y)
        for d in range(len(x)):
            layers.sums[layer + 1, old, d] = y[d] - x[d]
    if layers.samples[layer + 1, to] > 0:
        read(layers, features, layer + 1, to, y)
        for d in range(len(x)):
            layers.sums[layer + 1, to, d] = y[d] + x[d]
    unlink(layers, layer, node)
    link(layers, layer, node, to)
    layers.samples[layer + 1, old] -= samples
    layers.samples[layer + 1, to] += samples
    if layers.samples[layer + 1, to] == samples and samples > 1:
        for d in range(len(x)):
            layers.sums[layer + 1, to, d] = x[d]
    if layers.samples[layer + 1, old] == 0:
        release(layers, layer + 1, old)


@compiled
def above_of(layers: Forest, layer: int, node: int) -> int:
    return layers.parent[layer, node]


@compiled
def absorb(
    layers: Forest, features: FeatureStore, layer: int, into: int, node: int, x: Rows, y: Rows
) -> None:
    """Union of two clusters of one parent: all children of `node` go to `into`, and its id is given back.

    What waited in one of them waits in the union, since the earlier step.
    """
    since = layers.since[layer]
    if since[node] and (since[into] == 0 or since[node] < since[into]):
        since[into] = since[node]
    layers.hit[layer, into] |= layers.hit[layer, node]
    read(layers, features, layer, into, x)
    read(layers, features, layer, node, y)
    for d in range(len(x)):
        layers.sums[layer, into, d] = x[d] + y[d]
    child = layers.first[layer, node]
    while child != NONE:
        after = layers.next[layer - 1, child]
        unlink(layers, layer - 1, child)
        link(layers, layer - 1, child, into)
        child = after
    layers.samples[layer, into] += layers.samples[layer, node]
    release(layers, layer, node)


@compiled
def replace(
    layers: Forest, features: FeatureStore, root: int, samples: NDArray[np.int64], bits: NDArray[np.uint16]
) -> None:
    """New features (B, D) of samples (B,), carried into the sums above them."""
    delta = np.empty(bits.shape[1], np.float32)
    for i in range(len(samples)):
        node = samples[i]
        for d in range(len(delta)):
            delta[d] = features.floats[bits[i, d]] - features.floats[features.bits[node, d]]
            features.bits[node, d] = bits[i, d]
        for layer in range(1, root):
            node = layers.parent[layer - 1, node]
            if layers.samples[layer, node] > 1:
                for d in range(len(delta)):
                    layers.sums[layer, node, d] += delta[d]


@compiled
def recompute_sums(layers: Forest, features: FeatureStore, root: int) -> None:
    """All sums anew, which undoes the rounding of many small changes."""
    x = np.empty(features.bits.shape[1], np.float32)
    for layer in range(1, root):
        for node in range(layers.samples.shape[1]):
            if layers.samples[layer, node] > 1:
                for d in range(len(x)):
                    layers.sums[layer, node, d] = 0
        for child in range(layers.parent.shape[1]):
            node = layers.parent[layer - 1, child]
            if node != NONE and layers.samples[layer, node] > 1:
                read(layers, features, layer - 1, child, x)
                for d in range(len(x)):
                    layers.sums[layer, node, d] += x[d]


def build(layers: Forest, root: int, labels: NDArray[np.int64]) -> None:
    """Fill empty layers from nested labels (L−1, N), finest first; ids are dense, larger clusters first.

    Sums are left for `recompute_sums`. Children are listed in ascending order.
    """
    number = labels.shape[1]
    nodes = np.arange(number)  # representative sample of each node of the layer below
    for layer in range(1, root + 1):
        above = labels[layer - 1] if layer < root else np.zeros(number, np.int64)
        _, first, inverse, size = np.unique(above, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(-size, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        dense = rank[inverse]
        layers.samples[layer, : len(order)] = size[order]
        layers.free[layer, : number - len(order)] = np.arange(number - 1, len(order) - 1, -1)
        layers.free_size[layer] = number - len(order)
        _link_all(layers, layer - 1, dense[nodes].astype(np.int32))
        nodes = first[order]
    layers.parent[root, 0] = 0  # the root is its own parent, so that it counts as alive


@compiled
def _link_all(layers: Forest, layer: int, parents: Ids) -> None:
    for node in range(len(parents) - 1, -1, -1):
        link(layers, layer, node, parents[node])
