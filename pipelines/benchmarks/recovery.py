"""Does the online hierarchy find a planted tree again? ARI of both levels of clusters over epochs.

N samples lie around the centres of 30 clusters, these around 6 top directions. It begins with 40 % of the samples in
a random cluster. Then batches of 125 of the samples arrive, each sample once an epoch, while its noise is half
re-drawn at each visit and all centres walk. Trees differ in the cosine of sibling centres, the length of the noise
relative to the centre, and the dimension; see `SHAPES`. What is compared: thresholds (`CURVE`) and rules (`RULES`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks._asked import asked_for
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from raysurl.hierarchy import Hierarchy, signals

Thresholds = tuple[float, float]
Rows = NDArray[np.float32]
NUMBER, CLUSTERS, TOPS, BATCH = 3000, 30, 6, 125
CORRUPTED = 0.4  # share of the samples that begin in a random cluster
REDRAWN = 0.5  # length of what is added to a sample's unit noise at each visit
WALK = 0.02  # length of a centre's walk in one epoch, were its steps uncorrelated
DEFAULT: Thresholds = (0.755, 0.68)
CURVE: tuple[Thresholds, ...] = (
    (0.70, 0.60), DEFAULT, (0.80, 0.70), (0.85, 0.75), (0.90, 0.80), (0.95, 0.93),
)  # fmt: skip
PAPER = {"relocate": False, "correct_noise": False, "prototypes": 2}  # the text of the paper, step by step
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "as the paper's text": PAPER,
    "label propagation": {"mode": "label_propagation"},
}


@dataclass(frozen=True)
class Shape:
    """`sibling`: cosine of two centres under one top; `noise`: length of the noise, the centre's being one.

    `shared`: length of a direction that all samples have in common, as features do that have half collapsed.
    """

    sibling: float
    noise: float
    dim: int
    shared: float = 0.0

    def __str__(self) -> str:
        return f"cosine {self.sibling:g}, noise {self.noise:g}, D={self.dim}"


SHAPES = (
    Shape(0.60, 0.4, 64), Shape(0.60, 0.6, 64), Shape(0.65, 0.5, 64), Shape(0.70, 0.6, 128),
    Shape(0.65, 0.8, 128), Shape(0.60, 0.9, 256), Shape(0.70, 1.0, 256), Shape(0.65, 1.5, 256),
    Shape(0.60, 2.0, 512),
)  # fmt: skip


class Drifting:
    """A planted tree whose samples and centres move. `truth` (2, N): cluster and top cluster of each sample."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.random = shape, np.random.default_rng(seed)
        parent = np.arange(CLUSTERS) % TOPS
        away = np.sqrt(1 / shape.sibling - 1)
        top = self._directions(TOPS)[parent]
        self.centres = unit(top + away * self._directions(CLUSTERS))
        cluster = self.random.permutation(np.arange(NUMBER) % CLUSTERS)
        self.truth = np.stack([cluster, parent[cluster]])
        self.noise = self._directions(NUMBER)
        self.common = shape.shared * self._directions(1)
        begun = cluster.copy()
        wrong = self.random.random(NUMBER) < CORRUPTED
        begun[wrong] = self.random.integers(0, CLUSTERS, int(wrong.sum()))
        self.begun = np.stack([begun, parent[begun]])  # labels to begin with

    def features(self, index: NDArray[np.int64]) -> Rows:
        own = self.centres[self.truth[0, index]] + self.shape.noise * self.noise[index]
        return unit(own + self.common)

    def epoch(self) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Batches (index, features) of all samples, which move meanwhile."""
        step = WALK * np.sqrt(BATCH / NUMBER)
        for index in self.random.permutation(NUMBER).reshape(-1, BATCH):
            self.noise[index] = unit(self.noise[index] + REDRAWN * self._directions(BATCH))
            self.centres = unit(self.centres + step * self._directions(CLUSTERS))
            yield index, self.features(index)

    def _directions(self, number: int) -> Rows:
        return unit(self.random.normal(size=(number, self.shape.dim)))


def recover(
    shape: Shape, thresholds: Thresholds = DEFAULT, *, seed: int, epochs: int, **options: Any
) -> dict[str, Any]:
    """`ari`: per epoch the ARI of levels 2 and 3, the start first; `says`: what `signals.diagnose` finds at the end.

    `clusters`: their number on both levels at the end; the tree has 30 and 6.
    """
    tree, everyone = Drifting(shape, seed), np.arange(NUMBER)
    hierarchy = Hierarchy(NUMBER, shape.dim, merge_thresholds=thresholds, seed=seed, **options)
    hierarchy.begin(tree.features(everyone), tree.begun)

    def ari() -> list[float]:
        found = hierarchy.labels(everyone)[1:]
        return [float(adjusted_rand_score(t, f)) for t, f in zip(tree.truth, found, strict=True)]

    scores = [ari()]
    for _ in range(epochs):
        for index, features in tree.epoch():
            hierarchy.update(index, features)
        scores.append(ari())
    clusters = [len(hierarchy.clusters(level)) for level in (2, 3)]
    return {"ari": scores, "clusters": clusters, "says": signals.diagnose(hierarchy.health())}


def unit(rows: NDArray[Any]) -> Rows:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


# -------------------------------------------------------------------- tables


def main(arguments: list[str]) -> None:
    """`recovery [epochs=10] [seeds=[11,12]]`: tables, and one line of JSON at the end."""
    given = asked_for(arguments, {"epochs": 10, "seeds": [11, 12]})
    print(json.dumps(measure(int(given["epochs"]), [int(s) for s in given["seeds"]])))


def measure(epochs: int, seeds: list[int]) -> dict[str, Any]:
    """All rules at all thresholds of the curve on all trees, printed as they come."""
    lines: list[dict[str, Any]] = []
    print(
        f"\nRecovery: {NUMBER} samples, {CORRUPTED:.0%} corrupted, {epochs} epochs, {len(SHAPES)} trees ×"
        f" {len(seeds)} seeds; ARI of levels 2 / 3\n"
    )
    head = ("rule", "thresholds", "start", "end, mean", "end, worst tree", "clusters", "fragmented", "giant")
    print(row(head), row(["---"] * len(head)), sep="\n")
    for rule, options in RULES.items():
        for thresholds in CURVE:
            runs = [
                {
                    "shape": str(shape),
                    "seed": seed,
                    **recover(shape, thresholds, seed=seed, epochs=epochs, **options),
                }
                for shape in SHAPES
                for seed in seeds
            ]
            lines.append({"rule": rule, "thresholds": thresholds, "runs": runs})
            print(row([rule, "{} / {}".format(*thresholds), *_cells(runs)]), flush=True)
    _by_tree(next(line["runs"] for line in lines if line["thresholds"] == DEFAULT))
    return {"epochs": epochs, "seeds": seeds, "curve": lines}


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    scores = np.array([run["ari"] for run in runs])  # (runs, epochs + 1, 2)
    clusters = np.median([run["clusters"] for run in runs], axis=0)
    said = [sum(any(s.startswith(kind) for s in run["says"]) for run in runs) for kind in ("fragm", "giant")]
    ends = (scores[:, 0].mean(axis=0), scores[:, -1].mean(axis=0), scores[:, -1].min(axis=0))
    return [
        *("{:.2f} / {:.2f}".format(*end) for end in ends),
        "{:.0f} / {:.0f}".format(*clusters),
        *(f"{n} of {len(runs)}" for n in said),
    ]


def _by_tree(runs: list[dict[str, Any]]) -> None:
    """The default rule at the default thresholds: how each tree comes right."""
    epochs = len(runs[0]["ari"]) - 1
    shown = sorted({0, 1, 2, min(5, epochs), epochs})
    print("\n" + row(["tree", "seed", *(f"epoch {e}" for e in shown)]))
    print(row(["---"] * (2 + len(shown))))
    for run in runs:
        cells = ("{:.2f} / {:.2f}".format(*run["ari"][e]) for e in shown)
        print(row([run["shape"], str(run["seed"]), *cells]))


def row(cells: Any) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
