"""Splitting a cluster at its density peaks (spec of RCL's online clustering; Rodriguez & Laio 2014).

A unit is a child of the cluster: a sample, or a cluster of the level below, with its number of samples as weight.
Its density is Σ_j n_j exp(−(d_ij / d_c)²) over the units j, d = √(2 − 2 cos) and d_c the 20 % quantile of d. A peak is
a unit of high density that is far from every denser one. Peaks become prototypes, and every unit goes to one.
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
    allocate,
    ascending,
    children,
    link,
    move,
    read_all,
)
from raysurl.hierarchy.selection import ranked

QUANTILE = 0.2
UNITS_PER_PROTOTYPE = 8  # a cluster of u units is cut into u / 8 pieces, at least two
KERNEL = 0.1  # temperature of the affinity exp(cos / KERNEL) that labels propagate over
DAMPING = 0.9


@compiled
def split(
    layers: Forest,
    features: FeatureStore,
    layer: int,
    clusters: Ids,
    hit: Ids,
    max_prototypes: int,
    max_units: int,
    seed: int,
    propagate: bool,
) -> Ids:
    """Cut clusters (c,) of `layer` into pieces; returns the ids of all pieces, the clusters' own among them.

    `hit` are the units that the batch touched: always among the at most `max_units` units that the peaks are
    sought in. The largest piece keeps the cluster's id. With `propagate`, labels spread from the prototypes
    over the units' graph; else a unit goes to the nearest prototype.
    """
    is_hit = np.zeros(layers.parent.shape[1], np.bool_)
    for unit in hit:
        is_hit[unit] = True
    pieces = np.empty(len(clusters) * max_prototypes, np.int32)
    size = 0
    x, y = (
        np.empty(features.bits.shape[1], np.float32),
        np.empty(features.bits.shape[1], np.float32),
    )
    for cluster in clusters:
        pieces[size] = cluster
        size += 1
        units = children(layers, layer, cluster)
        if len(units) < 2:
            continue
        core = _core(units, is_hit, max_units, seed)
        rows = unit_rows(read_all(layers, features, layer - 1, units[core]))
        prototypes = _peaks(rows, layers.samples[layer - 1][units[core]], _number(len(units), max_prototypes))
        group = np.empty(len(units), np.int64)
        if propagate:
            group[core] = _propagated(rows, prototypes)
        _assign(layers, features, layer - 1, units, rows[prototypes], group, core, propagate)
        largest = np.argmax(_weights(group, layers.samples[layer - 1][units], len(prototypes)))
        new = np.full(len(prototypes), NONE, np.int32)
        for i in range(len(units)):
            g = group[i]
            if g == largest:
                continue
            if new[g] == NONE:
                new[g] = allocate(layers, layer)
                link(layers, layer, new[g], layers.parent[layer, cluster])
                pieces[size] = new[g]
                size += 1
            move(layers, features, layer - 1, units[i], new[g], x, y)
    return pieces[:size]


@compiled
def _number(units: int, most: int) -> int:
    return min(max(units // UNITS_PER_PROTOTYPE, 2), most, units)


@compiled
def _core(units: Ids, is_hit: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most `most` units, those hit first, then a random choice by (seed, unit)."""
    if len(units) <= most:
        return np.arange(len(units))
    keys = np.empty(len(units), np.float64)
    for i in range(len(units)):
        keys[i] = mixed(seed, units[i]) - is_hit[units[i]]
    chosen = np.zeros(len(units), np.bool_)
    for i in ascending(keys)[:most]:
        chosen[i] = True
    return np.flatnonzero(chosen)


@compiled
def mixed(seed: int, value: int) -> float:
    """A number in [0, 1) that is a function of both (splitmix64)."""
    z = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(value + 1) * np.uint64(0xD1342543DE82EF95)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) / 9007199254740992.0


@compiled
def unit_rows(rows: Rows) -> Rows:
    for i in range(len(rows)):
        length = max(np.sqrt(np.sum(rows[i] * rows[i])), np.float32(1e-12))
        for d in range(rows.shape[1]):
            rows[i, d] /= length
    return rows


@compiled
def _peaks(rows: Rows, weight: Ids, number: int) -> NDArray[np.int64]:
    """Positions of the prototypes: the densest unit, then the largest density × distance to a denser one."""
    n = len(rows)
    distance = np.sqrt(np.maximum(2 - 2 * np.dot(rows, rows.T), np.float32(0)))
    pairs = np.empty(n * (n - 1) // 2, np.float32)
    k = 0
    for i in range(n):
        for j in range(i + 1, n):
            pairs[k] = distance[i, j]
            k += 1
    at = int(QUANTILE * (len(pairs) - 1))
    cut = max(ranked(pairs, at), np.float32(1e-6))
    density = np.zeros(n, np.float32)
    for i in range(n):
        for j in range(n):
            density[i] += weight[j] * np.exp(-((distance[i, j] / cut) ** 2))
    densest, score = np.argmax(density), np.empty(n, np.float32)
    for i in range(n):
        nearest = np.float32(np.inf)
        for j in range(n):
            denser = density[j] > density[i] or (density[j] == density[i] and j < i)
            if denser and distance[i, j] < nearest:
                nearest = distance[i, j]
        score[i] = density[i] * nearest
    score[densest] = np.inf
    return ascending(-score)[:number]


@compiled
def _assign(
    layers: Forest,
    features: FeatureStore,
    layer: int,
    units: Ids,
    prototypes: Rows,
    group: NDArray[np.int64],
    core: NDArray[np.int64],
    keep_core: bool,
) -> None:
    """Nearest prototype (p, D) of each unit -> group (u,); the core's groups stay where `keep_core`."""
    stays = np.zeros(len(units), np.bool_)
    if keep_core:
        for i in core:
            stays[i] = True
    for begin in range(0, len(units), 1024):
        rows = read_all(layers, features, layer, units[begin : begin + 1024])
        cosines = np.dot(rows, prototypes.T)
        for i in range(len(rows)):
            if not stays[begin + i]:
                group[begin + i] = np.argmax(cosines[i])


@compiled
def _propagated(rows: Rows, prototypes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label propagation from prototypes over units (n, D): the most possible prototype of each (n,)."""
    possible = propagation(np.dot(rows, rows.T), prototypes)
    group = np.empty(len(rows), np.int64)
    for i in range(len(rows)):
        group[i] = np.argmax(possible[i])
    return group


@compiled
def propagation(cosines: Rows, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """(I − 0.9 S)⁻¹ Y with S = D^−½ W D^−½, W = exp(cos / 0.1) off the diagonal; rows (n, seeds) sum to one."""
    n = len(cosines)
    affinity = np.exp((cosines.astype(np.float64) - 1) / KERNEL)
    for i in range(n):
        affinity[i, i] = 0
    root, system = np.zeros(n), np.zeros((n, n))
    # one after the other: the sum of a row might be reordered
    for j in range(n):
        for i in range(n):
            root[i] += affinity[i, j]
    for i in range(n):
        root[i] = 1 / np.sqrt(max(root[i], 1e-300))
    for i in range(n):
        system[i, i] = 1
        for j in range(n):
            system[i, j] -= DAMPING * affinity[i, j] * root[i] * root[j]
    start = np.zeros((n, len(seeds)))
    for k in range(len(seeds)):
        start[seeds[k], k] = 1
    possible = np.linalg.solve(system, start).astype(np.float64)
    for i in range(n):
        total = max(np.sum(possible[i]), 1e-300)
        for k in range(len(seeds)):
            possible[i, k] /= total
    return possible


@compiled
def _weights(group: NDArray[np.int64], count: Ids, number: int) -> NDArray[np.int64]:
    total = np.zeros(number, np.int64)
    for i in range(len(group)):
        total[group[i]] += count[i]
    return total
