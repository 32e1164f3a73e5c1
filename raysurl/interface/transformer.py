"""`raysurl.Encoder`: images to embeddings as a transformer of scikit-learn."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from raysurl.interface.models import TrainedModel
from raysurl.interface.runs import pretrain

# no labels reach a transformer, so that nothing is judged by them
UNJUDGED = {"eval.protocols": ["rankme"], "eval.baselines": False}


class Encoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An encoder that `fit` trains without labels, and whose embeddings `transform` gives.

    `recipe`, `epochs`, `batch_size`, `runtime`, `settings`: as `raysurl.pretrain` takes them. `random_state`: the seed,
    a whole number. `output`: where the run is kept; None: nowhere. `verbose`: show a progress bar.

    Attributes: `model_`, what `raysurl.load` gives; `results_`, the last metrics by name. Images are whatever
    `raysurl.pretrain` and `raysurl.load(…).embed` take: (N,H,W,C) bytes, a list of PIL images or of files, a folder.
    """

    def __init__(
        self,
        recipe: str | os.PathLike[str] = "ressl/cifar10",
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        random_state: int = 0,
        runtime: str = "local",
        settings: Mapping[str, Any] | None = None,
        output: str | os.PathLike[str] | None = None,
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.runtime = runtime
        self.settings = settings
        self.output = output
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Encoder:
        """Train on images; `y` is not looked at. Raises InputError before anything is trained, and RunError."""
        with contextlib.ExitStack() as stack:
            output = self.output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            run = pretrain(
                self.recipe, X, epochs=self.epochs, batch_size=self.batch_size, seed=self.random_state,
                runtime=self.runtime, output=output, settings={**UNJUDGED, **(self.settings or {})},
                progress=self.verbose,
            )  # fmt: skip
            self.model_: TrainedModel = run.model
            self.results_: dict[str, float] = dict(run.results)
        self._n_features_out = int(self.model_.encoder.dim)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """(N, D) embeddings. Raises NotFittedError before `fit`, and InputError for what holds no images."""
        check_is_fitted(self)
        return self.model_.embed(X)
