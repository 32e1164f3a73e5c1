"""GenURL beside PCA, t-SNE (openTSNE), UMAP and Parametric UMAP (umap-learn) and PaCMAP: the same points and scores.

Each method embeds the training points in the plane. Trustworthiness, continuity and kNN recall at k = 10 are of a
fixed draw of them; `accuracy` is of logistic regression on the plane's points, fitted to the training points and scored
on the test points as `transform` places them; without test points, on a tenth that the regression does not see. Other
libraries come with `pip install -e '.[reduction]'`, and Parametric UMAP needs TensorFlow too. Settings are each
library's defaults unless given; a shorter training is a point of a curve of quality over time.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from raysurl import GenURL
from raysurl.data.names import open_samples
from raysurl.evaluate.division import each_tenth, embedding_points
from raysurl.evaluate.embedding import neighbourhood_scores
from raysurl.recipe import Data, yaml_argument
from raysurl.report import scatter
from raysurl.train import run_directory

SUBSET, K = 5000, 10
Settings = dict[str, Any]


def main(arguments: list[str]) -> None:
    """`dimension_reduction data.path=ROOT [data.name=torchvision:MNIST] [seeds=0] [limit=60000] [threads=2] [plots=DIR]
    [methods=pca,genurl,umap,parametric,tsne,pacmap] [METHOD.SETTING=…]`, a setting of that library's class:
    genurl.epochs=10, umap.n_epochs=50, tsne.n_iter=100, pacmap.num_iters=100."""
    given: dict[str, Any] = {
        "data.name": "torchvision:MNIST",
        "data.path": None,
        "limit": 60_000,
        "threads": 2,
        "plots": None,
    }
    given |= {"methods": ",".join(METHODS), "seeds": 0}
    given |= dict(yaml_argument(a) for a in arguments)
    own: dict[str, Settings] = {name: {} for name in METHODS}
    for key, value in given.items():
        name, _, setting = key.partition(".")
        if name in own:
            own[name][setting] = value
    data = Data(name=given["data.name"], path=given["data.path"], limit=int(given["limit"]), flatten="grey")
    (x, y), (new, new_y) = (load(data, split) for split in ("train", "eval"))
    where = (
        f"{platform.machine()}, {os.cpu_count()} cores, {given['threads']} threads, {run_directory.commit()}"
    )
    print(
        f"{len(x)} × {x.shape[1]} points, {len(new)} new ones; k = {K} on {min(SUBSET, len(x))} points; {where}"
    )
    head = ("trust", "contin", "recall", "accuracy", "fit", "transform")
    print(f"{'method':10} {'seed':>4} " + " ".join(f"{name:>9}" for name in head), flush=True)
    found: dict[str, list[list[float]]] = {}
    for seed in [int(s) for s in str(given["seeds"]).split(",")]:
        for name in str(given["methods"]).split(","):
            if importlib.util.find_spec(NEEDS.get(name, "raysurl")) is None:
                print(f"{name:10} needs {NEEDS[name]}, which is not installed")
                continue
            model = METHODS[name](seed, int(given["threads"]), own[name])
            numbers = measure(name, model, seed, x, y, new, new_y, given["plots"])
            found.setdefault(name, []).append(numbers)
    for name, rows in found.items():
        spread = zip(np.mean(rows, axis=0), np.std(rows, axis=0, ddof=len(rows) > 1), strict=True)
        print(f"{name:10} {len(rows)} seeds: " + "  ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in spread))


def load(data: Data, split: Any) -> tuple[Any, Any]:
    """Vectors (N, D) float32 and labels (N,); empty where there is no such split."""
    samples = open_samples(data, split, seed=0)
    if samples is None:
        return np.empty((0, 1), np.float32), np.empty(0, np.int64)
    rows: list[Any] = samples.load(np.arange(len(samples)))
    return np.stack(rows), samples.labels


def measure(
    name: str, model: Any, seed: int, x: Any, y: Any, new: Any, new_y: Any, plots: str | None
) -> list[float]:
    """One row of the table, in the order of its head."""
    since = time.perf_counter()
    low = np.asarray(model.fit_transform(x))
    fit_s = time.perf_counter() - since
    which = embedding_points(len(x), SUBSET).numpy()
    scores = list(neighbourhood_scores(x[which], low[which], K).values())
    if len(new):
        since = time.perf_counter()
        train, train_y, test, test_y = low, y, np.asarray(model.transform(new)), new_y
        transform_s = time.perf_counter() - since
    else:
        held = np.isin(np.arange(len(low)), each_tenth(np.arange(len(low)), y))
        train, train_y, test, test_y, transform_s = low[~held], y[~held], low[held], y[held], float("nan")
    scale = train.std() or 1.0
    regression = LogisticRegression(C=100, max_iter=1000).fit(train / scale, train_y)
    accuracy = 100 * regression.score(test / scale, test_y)
    row = " ".join(f"{value:9.3f}" for value in scores)
    print(f"{name:10} {seed:4} {row} {accuracy:9.2f} {fit_s:7.1f} s {transform_s:7.2f} s", flush=True)
    if plots:
        os.makedirs(plots, exist_ok=True)
        scatter.save(os.path.join(plots, f"{name}-{seed}.png"), low, y)
    return [*scores, accuracy, fit_s, transform_s]


class TSNE:
    """openTSNE with scikit-learn's interface: what `fit` returns is what places new points."""

    def __init__(self, seed: int, threads: int, own: Settings) -> None:
        import openTSNE

        self.model = openTSNE.TSNE(random_state=seed, n_jobs=threads, **own)

    def fit_transform(self, x: Any) -> Any:
        self.points = self.model.fit(x)
        return self.points

    def transform(self, new: Any) -> Any:
        return self.points.transform(new)


class PaCMAP:
    """PaCMAP with scikit-learn's interface: new points are placed among those of `fit`, which it is given anew."""

    def __init__(self, seed: int, own: Settings) -> None:
        import pacmap

        self.model = pacmap.PaCMAP(random_state=seed, save_tree=True, **own)

    def fit_transform(self, x: Any) -> Any:
        self.points = x
        return self.model.fit_transform(x)

    def transform(self, new: Any) -> Any:
        return self.model.transform(new, basis=self.points)


def umap(seed: int, own: Settings) -> Any:
    from umap import UMAP

    return UMAP(random_state=seed, **own)  # which makes it one thread, whatever is asked for


def parametric(seed: int, threads: int, own: Settings) -> Any:
    """A network that learns UMAP's plane: it places new points as GenURL does."""
    import keras
    import tensorflow
    from umap.parametric_umap import ParametricUMAP

    keras.utils.set_random_seed(seed)
    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    return ParametricUMAP(random_state=seed, keras_fit_kwargs={"verbose": 0}, **own)


NEEDS = {"umap": "umap", "parametric": "tensorflow", "tsne": "openTSNE", "pacmap": "pacmap"}
METHODS: dict[str, Callable[[int, int, Settings], Any]] = {
    "pca": lambda seed, threads, own: PCA(2, random_state=seed, **own),
    "genurl": lambda seed, threads, own: GenURL(2, random_state=seed, n_jobs=threads, **own),
    "umap": lambda seed, threads, own: umap(seed, own),
    "parametric": parametric,
    "tsne": TSNE,
    "pacmap": lambda seed, threads, own: PaCMAP(seed, own),
}
