"""Which cluster a node belongs to best, and the two moves that follow: relocation and merging.

Centres of small clusters are noisy, which lowers their cosine with everything: where the n samples of a cluster
scatter about their direction with variance ν (relative to the squared mean), the expected cosine of two such centres
is the true one times 1 / √((1 + ν/n_a)(1 + ν/n_b)). Thresholds are meant for true directions, so cosines are divided
by that attenuation before they are compared (`correct_noise`). ν comes from the larger of the two: an unbiased
squared mean length μ² = (|Σx|² − n) / (n² − n) of its unit rows x, ν = (1 − μ²) / μ².
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysurl.compiled import compiled
from raysurl.hierarchy.forest import (
    NONE,
    FeatureStore,
    Forest,
    Ids,
    Rows,
    absorb,
    ascending,
    children,
    move,
    read,
    read_all,
)
from raysurl.hierarchy.split import propagation, unit_rows

SHORTEST = 1e-3  # of μ²: beyond it a cluster has no direction that a correction could recover
BLOCK = 4096
PROPAGATION_NODES = 32  # siblings that labels propagate over when pieces are merged
SMALLEST = np.float32(1e-20)


@compiled
def best(
    layers: Forest, features: FeatureStore, layer: int, nodes: Ids, other: int, parents: Ids
) -> tuple[Ids, Rows]:
    """For nodes (n,) of `layer` the nearest cluster of layer `other` under `parents` (n,), and the cosine.

    The node's own cluster (itself where other = layer) is measured without the node, and is no candidate if
    nothing of it is left; −1 and −∞ where there is no candidate.
    """
    found, cosine = np.full(len(nodes), NONE, np.int32), np.full(len(nodes), -np.inf, np.float32)
    order = ascending(parents)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and parents[order[end]] == parents[order[begin]]:
            end += 1
        members = order[begin:end]
        candidates = children(layers, other + 1, parents[members[0]])
        rows = read_all(layers, features, layer, nodes[members])
        for start in range(0, len(candidates), BLOCK):
            block = candidates[start : start + BLOCK]
            _best_of_block(layers, features, layer, nodes, members, rows, other, block, found, cosine)
        begin = end
    return found, cosine


@compiled
def _best_of_block(
    layers: Forest,
    features: FeatureStore,
    layer: int,
    nodes: Ids,
    members: NDArray[np.int64],
    rows: Rows,
    other: int,
    block: Ids,
    found: Ids,
    cosine: Rows,
) -> None:
    centres = read_all(layers, features, other, block)
    length = np.empty(len(block), np.float32)
    for j in range(len(block)):
        square = SMALLEST
        for d in range(centres.shape[1]):
            square += centres[j, d] * centres[j, d]
        length[j] = np.sqrt(square)
        for d in range(centres.shape[1]):
            centres[j, d] /= length[j]
    products = np.dot(rows, centres.T)
    parent, samples, other_samples = layers.parent[layer], layers.samples[layer], layers.samples[other]
    for i in range(len(members)):
        node = nodes[members[i]]
        own = node if other == layer else parent[node]
        square = max(np.sum(rows[i] * rows[i]), SMALLEST)
        highest, at = np.float32(-np.inf), NONE
        for j in range(len(block)):
            value = products[i, j]
            if block[j] == own:
                if other_samples[own] == samples[node]:
                    continue
                rest = length[j] ** 2 - 2 * value * length[j] + square
                value = (value * length[j] - square) / np.sqrt(max(rest, SMALLEST))
            if value > highest:
                highest, at = value, block[j]
        highest /= np.sqrt(square)
        if highest > cosine[members[i]]:
            cosine[members[i]], found[members[i]] = highest, at


@compiled
def relocate(layers: Forest, features: FeatureStore, layer: int, nodes: Ids) -> None:
    """Move units (n,) of `layer` to the nearest cluster that has the same parent as theirs."""
    x, y = (
        np.empty(features.bits.shape[1], np.float32),
        np.empty(features.bits.shape[1], np.float32),
    )
    parents = np.empty(len(nodes), np.int32)
    for i in range(len(nodes)):
        parents[i] = layers.parent[layer + 1, layers.parent[layer, nodes[i]]]
    found, _ = best(layers, features, layer, nodes, layer + 1, parents)
    for i in range(len(nodes)):
        alive = found[i] != NONE and layers.samples[layer + 1, found[i]] > 0
        if alive and found[i] != layers.parent[layer, nodes[i]]:
            move(layers, features, layer, nodes[i], found[i], x, y)


@compiled
def merge(
    layers: Forest,
    features: FeatureStore,
    layer: int,
    pieces: Ids,
    threshold: float,
    correct_noise: bool,
    propagate: bool,
) -> int:
    """Unite each piece with its nearest sibling where they are closer than `threshold`; how many were united.

    The smaller goes into the larger. A sibling that has gone into another one meanwhile is followed there. With
    `propagate` the sibling is the one that label propagation finds most possible; the threshold is the same.
    """
    x, y = (
        np.empty(features.bits.shape[1], np.float32),
        np.empty(features.bits.shape[1], np.float32),
    )
    parents = layers.parent[layer][pieces]
    found, _ = best(layers, features, layer, pieces, layer, parents)
    if propagate:
        for i in range(len(pieces)):
            found[i] = most_possible(layers, features, layer, pieces[i])
    into = np.full(layers.parent.shape[1], NONE, np.int32)  # id that was given back -> the one that took it
    united = 0
    for i in range(len(pieces)):
        piece, sibling = pieces[i], found[i]
        while sibling != NONE and into[sibling] != NONE:
            sibling = into[sibling]
        if sibling < 0 or sibling == piece or into[piece] != NONE:
            continue
        if similarity(layers, features, layer, piece, sibling, correct_noise, x, y) <= threshold:
            continue
        united += 1
        if layers.samples[layer, piece] > layers.samples[layer, sibling]:
            into[sibling] = piece
            absorb(layers, features, layer, piece, sibling, x, y)
        else:
            into[piece] = sibling
            absorb(layers, features, layer, sibling, piece, x, y)
    return united


@compiled
def similarity(
    layers: Forest, features: FeatureStore, layer: int, a: int, b: int, correct: bool, x: Rows, y: Rows
) -> float:
    """Cosine of two clusters' centres, for noise-free centres where `correct`."""
    read(layers, features, layer, a, x)
    read(layers, features, layer, b, y)
    xx, yy = np.sum(x * x), np.sum(y * y)
    cosine = np.sum(x * y) / np.sqrt(max(xx * yy, np.float32(1e-20)))
    n, m = layers.samples[layer, a], layers.samples[layer, b]
    most, square = (n, xx) if n > m else (m, yy)
    if not correct or most < 2:
        return cosine
    mean_square = min(max((square - most) / (float(most) * most - most), SHORTEST), 1.0)
    noise = (1 - mean_square) / mean_square
    return cosine * np.sqrt((1 + noise / n) * (1 + noise / m))


@compiled
def most_possible(layers: Forest, features: FeatureStore, layer: int, piece: int) -> int:
    """The sibling whose label reaches `piece` most by propagation over it and its nearest siblings."""
    siblings = children(layers, layer + 1, layers.parent[layer, piece])
    siblings = siblings[siblings != piece]
    if len(siblings) == 0:
        return NONE
    rows = np.empty((len(siblings) + 1, features.bits.shape[1]), np.float32)
    for i in range(len(rows)):
        read(layers, features, layer, siblings[i - 1] if i else piece, rows[i])
    rows = unit_rows(rows)
    to_piece = np.dot(rows, rows[0])
    to_piece[0] = np.inf
    kept = ascending(-to_piece)[: PROPAGATION_NODES + 1]
    rows = rows[kept]
    possible = propagation(np.dot(rows, rows.T), np.arange(1, len(rows)))
    return siblings[kept[np.argmax(possible[0]) + 1] - 1]
