"""Planted trees, and what must hold of a hierarchy's forest at any time."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch

from raysurl.hierarchy import Hierarchy


def feature_rows(h):
    """The latest feature of every sample (N, D), as it is kept: in half precision."""
    return h._features.bits.view(np.float16).astype(np.float32)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def planted(number=3000, middles=30, tops=6, dim=64, sibling=0.65, noise=0.6, seed=0):
    """Features (N, dim), cluster and top cluster of each; sibling centres have a cosine of about `sibling`."""
    random = np.random.default_rng(seed)
    top = unit(random.normal(size=(tops, dim)))
    parent = np.arange(middles) % tops
    away = np.sqrt(1 / sibling - 1)
    centre = unit(top[parent] + away * unit(random.normal(size=(middles, dim))))
    truth = random.permutation(np.arange(number) % middles)
    rows = unit(centre[truth] + noise * unit(random.normal(size=(number, dim))))
    return rows, truth, parent[truth]


def flat(state, prefix=""):
    """A nested state as arrays by name."""
    if isinstance(state, dict):
        return {k: v for name, value in state.items() for k, v in flat(value, f"{prefix}/{name}").items()}
    if isinstance(state, list):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: state.numpy() if isinstance(state, torch.Tensor) else np.asarray(state)}


def layer_of(h: Hierarchy, layer: int) -> SimpleNamespace:
    """The fields of one layer's nodes."""
    fields = h._layers._asdict().items()
    return SimpleNamespace(**{name: value[layer] for name, value in fields if layer < len(value)})


def check_forest(h: Hierarchy) -> None:
    """Nesting, counts, sums, child lists and free ids, each recomputed from the parent pointers alone."""
    number = h.num_samples
    rows = feature_rows(h).astype(np.float64)
    labels = h.labels(np.arange(number))
    for finer, coarser in pairwise(labels):
        pairs = {(a, b) for a, b in zip(finer.tolist(), coarser.tolist(), strict=True)}
        assert len(pairs) == len(set(finer.tolist()))  # equal labels stay equal, level by level
        assert len(set(coarser.tolist())) <= len(set(finer.tolist()))
    for level in range(1, h.levels + 1):
        own, below = layer_of(h, level), layer_of(h, level - 1)
        of_samples = labels[level] if level < h.levels else np.zeros(number, int)
        alive = set(np.flatnonzero(own.samples > 0).tolist())
        assert alive == set(of_samples.tolist())
        free = own.free[: own.free_size].tolist()
        if level < h.levels:
            assert len(set(free)) == len(free)
            assert set(free) == set(range(number)) - alive
            assert set(h.clusters(level + 1).tolist()) == alive
        for node in alive:
            members = np.flatnonzero(of_samples == node)
            assert own.samples[node] == len(members)
            children, child, before = [], own.first[node], -1
            while child != -1:
                assert below.parent[child] == node
                assert below.prev[child] == before
                children.append(int(child))
                before, child = child, below.next[child]
            expected = np.flatnonzero((below.parent == node) & (below.samples > 0))
            assert sorted(children) == expected.tolist()
            assert own.children[node] == len(children)
            if level < h.levels and len(members) > 1:
                np.testing.assert_allclose(own.sums[node], rows[members].sum(axis=0), atol=2e-4)
