"""The forest under a hierarchy: nodes of each level in flat arrays, with parent pointers and child lists.

Layer 0 holds the N samples, layers 1 … L−1 the clusters of levels 2 … L, layer L a single root. A node knows its
parent, so a sample's label is found by following L−1 pointers, and two samples that share a cluster share every
coarser one. Children form a doubly linked list, so that moving a node costs no search. A cluster keeps the sum of
its samples' features; one of a single sample keeps none and reads the sample's row, because after density clustering
most clusters may be such singletons. Features are kept in half precision (as bits: compiled code has no half floats).

Letters: N samples, D dimensions, L levels, u children of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
NONE = -1
COMPILED_LAYERS = 6


def compiled(function: Function) -> Function:
    """Compile with numba; sums may be reordered, which is the same on every call. Other threads go on beside it."""
    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})(function)


class Layer(NamedTuple):
    """Nodes of one level. `parent` is NONE for an id that is free, `first` for a sample."""

    parent: Ids  # (capacity,) id in the layer above
    next: Ids  # (capacity,) the siblings' list
    prev: Ids
    first: Ids  # (capacity,) head of the children's list, in the layer below
    children: Ids  # (capacity,) their number
    samples: Ids  # (capacity,) their number
    hit: NDArray[np.bool_]  # (capacity,) it changed, and its cluster above has not been reworked since
    since: Ids  # (capacity,) step at which the first such child was hit, 0 = none waits
    sums: Rows  # (capacity, D) sum of the samples' features, where there are two or more
    free: Ids  # (capacity,) stack of free ids …
    free_size: NDArray[np.int64]  # (1,) … and its height


class FeatureStore(NamedTuple):
    """The latest feature of every sample."""

    bits: NDArray[np.uint16]  # (N, D) half floats
    floats: Rows  # (65536,) what each bit pattern means


Features = (
    FeatureStore  # numba's caches on disk of before it was renamed load by this name, and are then made anew
)
Forest = tuple[Layer, ...]


def empty_layers(num_samples: int, dim: int, levels: int) -> Forest:
    """Every id free; rows of `sums` cost memory only once they are written.

    Layers above the root are never used: code is compiled for one number of layers, whatever the levels are.
    """
    layers = [_empty(num_samples, 0)]
    layers += [_empty(num_samples, dim) for _ in range(levels - 1)]
    layers.append(_empty(1, dim))
    layers += [_empty(1, 0) for _ in range(COMPILED_LAYERS - len(layers))]
    layers[0].samples[:] = 1
    return tuple(layers)


def empty_features(num_samples: int, dim: int) -> FeatureStore:
    floats = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
    return FeatureStore(np.zeros((num_samples, dim), np.uint16), floats)


def _empty(capacity: int, dim: int) -> Layer:
    def ids() -> Ids:
        return np.full(capacity, NONE, np.int32)

    return Layer(
        ids(),
        ids(),
        ids(),
        ids(),
        np.zeros(capacity, np.int32),
        np.zeros(capacity, np.int32),
        np.zeros(capacity, np.bool_),
        np.zeros(capacity, np.int32),
        np.zeros((capacity, dim), np.float32),
        np.arange(capacity - 1, -1, -1, dtype=np.int32),
        np.array([capacity]),
    )


@compiled
def ancestor(layers: Forest, node: int, low: int, high: int) -> int:
    """The node of layer `high` above a node of layer `low`."""
    for layer in range(low, high):
        node = layers[layer].parent[node]
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
    if layer > 0 and layers[layer].samples[node] > 1:
        out[:] = layers[layer].sums[node]
        return
    while layer > 0:
        node = layers[layer].first[node]
        layer -= 1
    for d in range(len(out)):
        out[d] = features.floats[features.bits[node, d]]


@compiled
def read_all(layers: Forest, features: FeatureStore, layer: int, nodes: Ids) -> Rows:
    """Sums of several nodes -> (n, D)."""
    out = np.empty((len(nodes), features.bits.shape[1]), np.float32)
    samples, sums = layers[layer].samples, layers[layer].sums
    for i in range(len(nodes)):
        if layer > 0 and samples[nodes[i]] > 1:
            out[i] = sums[nodes[i]]
        else:
            read(layers, features, layer, nodes[i], out[i])
    return out


@compiled
def children(layers: Forest, layer: int, node: int) -> Ids:
    """Ids, in the layer below, of a node's children."""
    out = np.empty(layers[layer].children[node], np.int32)
    child, after = layers[layer].first[node], layers[layer - 1].next
    for i in range(len(out)):
        out[i] = child
        child = after[child]
    return out


@compiled
def allocate(layers: Forest, layer: int) -> int:
    """An id that was free; it has neither parent nor children yet."""
    own = layers[layer]
    own.free_size[0] -= 1
    node = own.free[own.free_size[0]]
    own.first[node], own.children[node], own.samples[node] = NONE, 0, 0
    return node


@compiled
def release(layers: Forest, layer: int, node: int) -> None:
    """Give back a cluster that has no children left."""
    unlink(layers, layer, node)
    own = layers[layer]
    own.parent[node] = NONE
    own.samples[node] = 0
    own.hit[node], own.since[node] = False, 0
    own.free[own.free_size[0]] = node
    own.free_size[0] += 1


@compiled
def link(layers: Forest, layer: int, node: int, parent: int) -> None:
    """Put a node at the head of a parent's list. Counts and sums are the caller's."""
    own, above = layers[layer], layers[layer + 1]
    head = above.first[parent]
    own.parent[node], own.next[node], own.prev[node] = parent, head, NONE
    if head != NONE:
        own.prev[head] = node
    above.first[parent] = node
    above.children[parent] += 1


@compiled
def unlink(layers: Forest, layer: int, node: int) -> None:
    own, above = layers[layer], layers[layer + 1]
    before, after = own.prev[node], own.next[node]
    if before != NONE:
        own.next[before] = after
    else:
        above.first[own.parent[node]] = after
    if after != NONE:
        own.prev[after] = before
    above.children[own.parent[node]] -= 1


@compiled
def move(layers: Forest, features: FeatureStore, layer: int, node: int, to: int, x: Rows, y: Rows) -> None:
    """Move a node to another cluster of the same grandparent; a cluster left empty is given back.

    `x` and `y` (D,) are scratch.
    """
    above = layers[layer + 1]
    old, samples = above_of(layers, layer, node), layers[layer].samples[node]
    read(layers, features, layer, node, x)
    if above.samples[old] > samples:
        read(layers, features, layer + 1, old, y)
        for d in range(len(x)):
            above.sums[old, d] = y[d] - x[d]
    if above.samples[to] > 0:
        read(layers, features, layer + 1, to, y)
        for d in range(len(x)):
            above.sums[to, d] = y[d] + x[d]
    unlink(layers, layer, node)
    link(layers, layer, node, to)
    above.samples[old] -= samples
    above.samples[to] += samples
    if above.samples[to] == samples and samples > 1:
        above.sums[to] = x
    if above.samples[old] == 0:
        release(layers, layer + 1, old)


@compiled
def above_of(layers: Forest, layer: int, node: int) -> int:
    return layers[layer].parent[node]


@compiled
def absorb(
    layers: Forest, features: FeatureStore, layer: int, into: int, node: int, x: Rows, y: Rows
) -> None:
    """Union of two clusters of one parent: all children of `node` go to `into`, and its id is given back.

    What waited in one of them waits in the union, since the earlier step.
    """
    own = layers[layer]
    if own.since[node] and (own.since[into] == 0 or own.since[node] < own.since[into]):
        own.since[into] = own.since[node]
    own.hit[into] |= own.hit[node]
    read(layers, features, layer, into, x)
    read(layers, features, layer, node, y)
    for d in range(len(x)):
        own.sums[into, d] = x[d] + y[d]
    child = own.first[node]
    while child != NONE:
        after = layers[layer - 1].next[child]
        unlink(layers, layer - 1, child)
        link(layers, layer - 1, child, into)
        child = after
    own.samples[into] += own.samples[node]
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
            node = layers[layer - 1].parent[node]
            if layers[layer].samples[node] > 1:
                for d in range(len(delta)):
                    layers[layer].sums[node, d] += delta[d]


@compiled
def recompute_sums(layers: Forest, features: FeatureStore, root: int) -> None:
    """All sums anew, which undoes the rounding of many small changes."""
    x = np.empty(features.bits.shape[1], np.float32)
    for layer in range(1, root):
        own = layers[layer]
        for node in range(len(own.samples)):
            if own.samples[node] > 1:
                own.sums[node] = 0
        for child in range(len(layers[layer - 1].parent)):
            node = layers[layer - 1].parent[child]
            if node != NONE and own.samples[node] > 1:
                read(layers, features, layer - 1, child, x)
                for d in range(len(x)):
                    own.sums[node, d] += x[d]


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
        own = layers[layer]
        own.samples[: len(order)] = size[order]
        own.free[: len(own.free) - len(order)] = np.arange(len(own.free) - 1, len(order) - 1, -1)
        own.free_size[0] = len(own.free) - len(order)
        _link_all(layers, layer - 1, dense[nodes].astype(np.int32))
        nodes = first[order]
    layers[root].parent[0] = 0  # the root is its own parent, so that it counts as alive


@compiled
def _link_all(layers: Forest, layer: int, parents: Ids) -> None:
    for node in range(len(parents) - 1, -1, -1):
        link(layers, layer, node, parents[node])
