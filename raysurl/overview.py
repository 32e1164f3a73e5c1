"""The map of a run: its embeddings in two dimensions by the project's own GenURL, and what curation finds in them.

Made where the run was started, once it has ended, of what the run left (raysurl.train.embedding). 500 steps of a small
network take five seconds of one core, however many points there are, and the rest two seconds for 5,000 points.

Letters: N points, D values, k neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysurl import streams
from raysurl.errors import RunError
from raysurl.paths import whole
from raysurl.report.progress import announce
from raysurl.train.embedding import FILE

STEPS, BATCH = 500, 256  # of the network that maps
SPREAD = 0.1  # degrees of freedom of the map's kernel: a cluster has room for its points to be told apart
THREADS = 1  # so that a run has one map on every machine; two gain little on a network so small
NEIGHBOURS = 9  # that a click shows
VOTERS = 20  # neighbours among the train points by which a point is told right or wrong
TAU = 0.1
PAIRS, ALONE = 16, 24  # near copies and outliers that are shown
GROUPS = 12  # of k-means, where the run has no clusters of its own
MAP = "map.npz"


def write_map(run_dir: Path) -> None:
    """`samples/map.npz` of `samples/embedding.npz`, which is gone then; nothing where there is none.

    `points` (N, 2), `neighbours` (N, k) and `cosines` of them, `right` (N,) whether kNN has the label, −1 = unknown;
    `groups` (N,); `pairs` (P, 2) and `pair_cosines`, near copies, `copies` how many rows could go; `outliers` (O,);
    index, split, labels, clusters and side as they were.
    """
    stored = run_dir / "samples" / FILE
    if not stored.is_file():
        return
    with np.load(stored, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    announce(f"a map of {len(arrays['index']):,} embeddings is made for the report")
    features, seed = arrays.pop("features"), int(arrays.pop("seed"))
    made = {**arrays, "points": points_of(features, seed), **curated(features, arrays, seed)}
    with whole(run_dir / "samples" / MAP) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **made)
    stored.unlink()


def points_of(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """(N, D) -> (N, 2): as they are where they are of the plane; zeros where no map was found."""
    if features.shape[1] == 2:
        return features
    from raysurl.estimator import GenURL  # scikit-learn, which a run without a map need not wait for

    per_epoch = max(len(features) // BATCH, 1)
    network = GenURL(
        metric="cosine",
        epochs=-(-STEPS // per_epoch),
        batch_size=BATCH,
        nu_z=SPREAD,
        random_state=streams.integer(seed, "map"),
        n_jobs=THREADS,
    )
    length = np.linalg.norm(features, axis=1, keepdims=True)
    try:
        return network.fit_transform((features / np.maximum(length, 1e-12)).astype(np.float32))
    except (RunError, ValueError):  # embeddings that all are the same
        return np.zeros((len(features), 2), np.float32)


def curated(features: NDArray[np.float32], known: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the functions of raysurl.curation say of the points."""
    from raysurl.curation.clustering import cluster
    from raysurl.curation.copies import duplicates
    from raysurl.curation.near import near_others
    from raysurl.curation.outlying import outliers
    from raysurl.curation.rows import embeddings_of

    length = np.linalg.norm(features, axis=1)
    # a row of zeros has no direction: any will do
    rows = np.where(length[:, None] > 0, features, 1.0)
    found = embeddings_of(rows)
    near = near_others(found, min(NEIGHBOURS, len(rows) - 1), seed=seed)
    copies = duplicates(found, seed=seed)
    kept = np.zeros(copies.groups, np.int64)
    kept[copies.group[copies.keep & (copies.group >= 0)]] = np.flatnonzero(copies.keep & (copies.group >= 0))
    nearest = copies.drop[np.argsort(-copies.similarity[copies.drop], kind="stable")][:PAIRS]
    return {
        "neighbours": near.index,
        "cosines": near.cosine,
        "right": voted(rows, known["labels"], known["split"]),
        "groups": cluster(found, min(GROUPS, len(rows) // 4), seed=seed).labels[0],
        "pairs": np.stack([kept[copies.group[nearest]], nearest], 1).reshape(-1, 2),
        "pair_cosines": copies.similarity[nearest],
        "copies": np.array(len(copies.drop)),
        "threshold": np.array(copies.threshold),
        "outliers": outliers(found, seed=seed).order[:ALONE],
    }


def voted(
    rows: NDArray[np.float32], labels: NDArray[np.int64], split: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """(N,) 1 where the train points next to a point, but for itself, vote for its label; 0 where not, −1 unknown."""
    import torch

    from raysurl.evaluate.nearest import nearest

    right = np.full(len(rows), -1)
    bank, of = np.flatnonzero((split == 0) & (labels >= 0)), np.flatnonzero(labels >= 0)
    if len(bank) <= VOTERS or len(np.unique(labels[bank])) < 2:
        return right
    z, y = torch.from_numpy(rows), torch.from_numpy(labels)
    cosine, place = nearest(z[bank], z[of], VOTERS + 1)
    itself = torch.from_numpy(bank)[place] == torch.from_numpy(of)[:, None]
    # a test point, which is not among them, has one neighbour too many
    itself[:, -1] |= ~itself.any(dim=1)
    votes = torch.exp(cosine / TAU) * ~itself
    counts = torch.zeros(len(of), int(labels.max()) + 1).scatter_add_(1, y[bank][place], votes)
    right[of] = counts.argmax(1).numpy() == labels[of]
    return right
