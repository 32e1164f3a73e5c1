"""GenURL as a scikit-learn transformer: dimension reduction of a matrix in one call, in this process.

    from raysurl import GenURL
    points = GenURL(n_components=2, random_state=0).fit_transform(X)

The recipe genurl/mnist_2d without a run directory: the same method, graph, sampler and trainer. It is parametric, so
that new points are a pass through a small network. Importing `raysurl` does not import this module.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import closing
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import NDArray
from rich.progress import track
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from raysurl import metrics
from raysurl import recipe as recipes
from raysurl.build import resolve
from raysurl.data.machine import free_memory
from raysurl.data.shards import Shard
from raysurl.data.source import ResidentSource, SourceFacts
from raysurl.errors import RunError
from raysurl.recipe import Recipe
from raysurl.report import scatter
from raysurl.runtime import LocalRuntime, named_device, torch_as_it_starts
from raysurl.train import trainer

BLOCK = 8192  # rows transformed at once
FAST_BLOCK = 256  # … in fp32, always as many: a product of another shape may end in another last digit
FAST_SCALES = (1e-30, 1e30)  # that fp32 divides by without loss
PASSES, LEAST_STEPS, MOST_STEPS = 100, 1000, 12_000  # where `epochs` is None
FLOATS = (np.float64, np.float32)
LEAST = 1e-140  # of a spread whose square fp64 holds with all its digits

_WHOLE = Interval(Integral, 1, None, closed="left")
_POSITIVE = Interval(Real, 0, np.inf, closed="neither")


class GenURL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Parametric dimension reduction by GenURL (Li et al., TNNLS 2023, sec. IV-A), BCE or GKL on a kNN graph.

    `n_components`: dimensions of the embedding. `n_neighbors` k of the graph, fewer where there are fewer points.
    `metric`: euclidean | cosine. `loss`: bce | gkl | kl | mse. `nu_z`: degrees of freedom of the embedding's kernel,
    smaller ones draw clusters apart. `sigma_x`: width of the input's kernel in the units of X; None: by binary search.
    `exaggeration`: of the graph's similarities at the first step, as t-SNE's, down to 1 at the last in a line (α_t of
    eq. 2); it lets neighbours find each other before the map has set. `hidden`: widths of the network's hidden layers.
    `epochs`: passes over the data; None: 100, but at least 1,000 and at most 12,000 steps. `batch_size`: at most, and
    not more than the points. `learning_rate` of Adam, to zero by a cosine.
    `random_state`: seed; `n_jobs`: CPU threads, −1: all, None: 1 (or as joblib's context has it); `device`: cpu | cuda;
    `verbose`: show a progress bar.

    Attributes: `embedding_` (N, n_components) of the points of `fit`, `encoder_` the network, `loss_` the mean of the
    last epoch, `n_features_in_`, `feature_names_in_` where X has column names.

    X may be sparse; `fit` holds it dense. There is no `inverse_transform`: the network has no decoder.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [_WHOLE],
        "n_neighbors": [_WHOLE],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "loss": [StrOptions({"bce", "gkl", "kl", "mse"})],
        "nu_z": [_POSITIVE],
        "sigma_x": [_POSITIVE, None],
        "exaggeration": [Interval(Real, 0, np.inf, closed="left")],
        "hidden": ["array-like", _WHOLE],
        "epochs": [_WHOLE, None],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "learning_rate": [_POSITIVE],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "device": [str, torch.device],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int = 15,
        metric: str = "euclidean",
        loss: str = "bce",
        nu_z: float = 0.001,
        sigma_x: float | None = None,
        exaggeration: float = 8.0,
        hidden: tuple[int, ...] = (256, 256, 256, 256),
        epochs: int | None = None,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        random_state: Any = None,
        n_jobs: int | None = 1,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.loss = loss
        self.nu_z = nu_z
        self.sigma_x = sigma_x
        self.exaggeration = exaggeration
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from X (N, D), N ≥ 2; `y` is not used. Raises ValueError for NaN, infinities, or bad settings."""
        self._validate_params()
        given = validate_data(self, X, dtype=FLOATS, accept_sparse="csr", ensure_min_samples=2)
        rows = _dense(given)
        recipe = resolve(self._recipe(len(rows)), rows.shape[1])
        centre, scale = self._standard(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            standard = ((rows - centre) / scale).astype(np.float32)
        if not np.isfinite(standard).all():
            raise ValueError("X holds values too large for the network's float32; divide X by a number first")
        try:
            self.encoder_, self.loss_ = self._train(recipe, standard)
        except metrics.NonFiniteError:
            raise self._diverged() from None
        self._centre, self._scale, self._fast = centre, scale, copy.deepcopy(self.encoder_).float()
        self.embedding_ = self._embed(rows)
        if not np.isfinite(self.embedding_).all():
            raise self._diverged()
        self._n_features_out = self.n_components
        return self

    def _diverged(self) -> RunError:
        return RunError(
            f"the network has diverged with learning_rate={self.learning_rate:g}, nu_z={self.nu_z:g} and"
            f" exaggeration={self.exaggeration:g}; take a lower learning_rate, or the defaults of the others"
        )

    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """New points X (n, D) -> (n, n_components), in the precision of X: many of float32 take a third of the time.

        A point's place does not depend on its company.
        """
        check_is_fitted(self, "encoder_")
        return self._embed(validate_data(self, X, dtype=FLOATS, accept_sparse="csr", reset=False))

    @torch_as_it_starts()
    def _embed(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Dense or sparse rows (n, D), block by block, so that sparse ones are never dense as a whole."""
        fast = rows.dtype == np.float32 and FAST_SCALES[0] < self._scale < FAST_SCALES[1]
        found = np.empty((rows.shape[0], self.n_components), rows.dtype)
        with torch.inference_mode(), np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, rows.shape[0], BLOCK):
                block = rows[start : start + BLOCK]
                block = block.toarray() if issparse(block) else block
                part = self._in_fp32(block) if fast else None
                # what fp32 does not hold is placed by fp64
                if part is None or not np.isfinite(part).all():
                    part = self._in_fp64(block)
                found[start : start + BLOCK] = part
        return found

    def _in_fp64(self, block: NDArray[Any]) -> NDArray[Any]:
        part = (block.astype(np.float64) - self._centre) / self._scale
        return self.encoder_(torch.from_numpy(part)).numpy()

    def _in_fp32(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The centre is subtracted in two parts: rounded, it would shift all points where it is large beside their
        spread."""
        high = self._centre.astype(np.float32)
        low = (self._centre - high).astype(np.float32)
        centre = torch.from_numpy(high), torch.from_numpy(low)
        rows = np.zeros((FAST_BLOCK, len(high)), np.float32)
        given, found = torch.from_numpy(rows), np.empty((len(block), self.n_components), np.float32)
        for start in range(0, len(block), FAST_BLOCK):
            part = block[start : start + FAST_BLOCK]
            count = len(part)
            rows[:count] = part  # however they lie in memory
            given[:count].sub_(centre[0]).sub_(centre[1]).div_(self._scale)
            found[start : start + count] = self._fast(given)[:count].numpy()
        return found

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> NDArray[np.floating[Any]]:
        """`fit`, then the embedding of the same points."""
        embedded: NDArray[np.floating[Any]] = self.fit(X, y, **fit_params).embedding_
        return embedded

    def plot(self, path: str | Path, colour: Any = None, points: Any = None) -> None:
        """A PNG of the embedded points of `fit`, or of `points` (n, 2), coloured by classes or numbers (n,)."""
        check_is_fitted(self, "encoder_")
        scatter.save(path, self.embedding_ if points is None else points, colour)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True
        tags.non_deterministic = False
        return tags

    def _recipe(self, count: int) -> Recipe:
        """The run as a recipe, of Python's own numbers. Raises InputError, a ValueError, for what only it can see."""
        k = min(int(self.n_neighbors), count - 1)
        batch = min(int(self.batch_size), count)
        per_epoch = count // batch
        steps = min(max(PASSES * per_epoch, LEAST_STEPS), MOST_STEPS)
        epochs = -(-steps // per_epoch) if self.epochs is None else int(self.epochs)
        knn = {
            "kind": "knn",
            "k": k,
            "weight": float(self.exaggeration),
            "weight_end": 1,
            "metric": self.metric,
            "sigma": None if self.sigma_x is None else float(self.sigma_x),
        }
        knn |= {"neighbours": min(5, k)} if k >= 3 else {"scale": "statistics"}
        method = {
            "name": "genurl",
            "structures": [knn],
            "kind": self.loss,
            "nu_z": float(self.nu_z),
            "sigma": 1,
        }
        tree = {
            "method": method | {"target": "static", "target_clamp": "none", "neck": False, "distance": "l2"},
            "data": {"name": "npz"},
            "encoder": {"name": "mlp", "widths": [*self._widths(), int(self.n_components)]},
            "train": {
                "epochs": epochs,
                "batch_size": batch,
                "sampler": "neighbours" if batch < count else "permutation",
                "optimizer": {
                    "name": "adam",
                    "lr": float(self.learning_rate),
                    "lr_batch": 0,
                    "weight_decay": 0,
                },
                "schedule": {"name": "cosine", "warmup_epochs": 0},
            },
            "checkpoint": {"every_epochs": 0},
            "eval": {"every_epochs": 0, "protocols": [], "baselines": False},
            "scale": {"threads": effective_n_jobs(self.n_jobs)},
            "log": {"tensorboard": False, "every_steps": 1000},
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
        }
        return recipes.recipe_from(tree)

    def _widths(self) -> list[int]:
        """Of the hidden layers; one number is one layer."""
        widths = [self.hidden] if isinstance(self.hidden, Integral) else list(self.hidden)
        if not all(_WHOLE.is_satisfied_by(width) for width in widths):
            raise ValueError(
                "The 'hidden' parameter of GenURL must be an int in the range [1, inf) or a sequence of such."
                f" Got {self.hidden!r} instead."
            )
        return [int(width) for width in widths]

    def _standard(self, rows: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
        """The mean of the rows, and one number that brings them to unit size: distances keep their order."""
        with np.errstate(over="ignore", invalid="ignore"):  # what it comes to is looked at by `fit`
            centre = rows.mean(axis=0, dtype=np.float64)
            if self.sigma_x is not None:
                return centre, 1.0
            spread = float(np.sqrt(np.mean(np.var(rows, axis=0, dtype=np.float64))))
            if not np.isfinite(spread) or spread < LEAST:
                most = float(np.abs(rows).max())
                unit = 2.0 ** np.floor(np.log2(most)) if most else 1.0  # a power of two changes no digit
                spread = unit * float(np.sqrt(np.mean(np.var(rows / unit, axis=0, dtype=np.float64))))
        return centre, spread or 1.0

    @torch_as_it_starts()
    def _train(self, recipe: Recipe, rows: NDArray[np.float32]) -> tuple[torch.nn.Module, float]:
        facts = SourceFacts(np.ones(len(rows), bool), (), None, None, "resident")
        source = ResidentSource([Shard(rows)], facts)
        with tempfile.TemporaryDirectory() as folder:
            runtime = LocalRuntime(named_device(str(self.device)))
            with closing(trainer.start(recipe, runtime, source, None, Path(folder))) as run:
                trainer.refresh_memory(run)
                epochs = range(recipe.total_epochs)
                for _ in track(epochs, description="GenURL", disable=not self.verbose, transient=True):
                    trainer.train_epoch(run)
            lines = metrics.read(Path(folder) / "metrics.jsonl")
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        loss = float(np.mean(losses[-run.plan.steps_per_epoch :]))
        return run.method.encoder.eval().cpu().double(), loss


def _dense(rows: Any) -> Any:
    """Sparse rows as an array. Raises ValueError where memory would not hold it."""
    if not issparse(rows):
        return rows
    need, free = rows.shape[0] * rows.shape[1] * 2 * rows.dtype.itemsize, free_memory()
    if need > free:
        raise ValueError(
            f"X of shape {rows.shape} is sparse, fit holds it dense, and {need / 2**30:.1f} GiB are more than the"
            f" {free / 2**30:.1f} GiB that are free; reduce its columns first, for example by TruncatedSVD"
        )
    return rows.toarray()
