"""A trained encoder in Python: images to embeddings, and to classes where it was fine-tuned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysurl.classifier import StoredClassifier, load_classifier
from raysurl.data.depth import Depth
from raysurl.data.names import Samples
from raysurl.embed import embed
from raysurl.encoder import load_encoder
from raysurl.errors import InputError
from raysurl.export.asked import asked_for
from raysurl.export.writing import write
from raysurl.interface.images import samples_of
from raysurl.paths import given_path
from raysurl.recipe import Recipe
from raysurl.runtime import default_device, named_device, torch_as_it_starts
from raysurl.train import local


class TrainedModel:
    """What `raysurl.load` gives. `encoder`: the network; `recipe`: how images are prepared for it."""

    @torch_as_it_starts()
    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self._classifier: StoredClassifier | None = None
        if path.is_file() and path.name.startswith("classifier-"):
            found = self._classifier = load_classifier(str(path))
            encoder: Any = found.network.encoder
            self.recipe, self.encoder, self.depth = found.recipe, encoder, found.depth
        else:
            loaded = load_encoder(str(path))
            self.recipe, self.encoder, self.depth = loaded.recipe, loaded.encoder, loaded.depth
        self.encoder.to(device).eval()

    def __repr__(self) -> str:
        return f"<{self.recipe.encoder.name} of {self.path}, on {self.device}>"

    def embed(self, images: Any, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """(N, D) embeddings, a row per image in the order given, as `raysurl embed` writes them.

        `images`: an array or tensor (N,H,W,C), (N,C,H,W) or (N,H,W), bytes or floats in 0…1; a list of PIL images,
        arrays, tensors or file names; a torch Dataset; a folder, whose files are taken by name, a Parquet or a NumPy
        file. `batch_size`: images at a time; it changes rows by rounding alone. Raises InputError for anything else,
        and for an image that cannot be read.
        """
        return self._applied(self.encoder, self.recipe, self.depth, images, batch_size)

    def predict(self, images: Any, *, batch_size: int | None = None) -> NDArray[Any]:
        """(N,) the most likely class of each image, as the training data called it: by name, or else by number.

        Raises InputError where the run was not fine-tuned (`run.evaluate(protocols=["finetune"])`).
        """
        return np.asarray(self.classes)[self.predict_proba(images, batch_size=batch_size).argmax(1)]

    def predict_proba(self, images: Any, *, batch_size: int | None = None) -> NDArray[np.float64]:
        """(N, C) the probability of each class, in the order of `classes`; as `predict`."""
        found = self._fine_tuned()
        scores = self._applied(found.network.to(self.device), found.recipe, found.depth, images, batch_size)
        probabilities: NDArray[np.float64] = torch.softmax(torch.from_numpy(scores).double(), 1).numpy()
        return probabilities

    @torch_as_it_starts()
    def export(
        self,
        to: str | Sequence[str],
        folder: str | os.PathLike[str],
        *,
        takes: str = "views",
        license: str | None = None,
    ) -> dict[str, Path]:
        """Write the encoder in forms that other programs read, as `raysurl export` does; target -> file or folder.

        `to`: onnx, torchscript, torch.export, timm or huggingface, or several of them. `folder`: not there yet, or
        empty. `takes`: what the first three are given, normalised views (b, 3, S, S), or pixels in [0, 1]. `license`:
        of the weights, for the model card. Each is compared with the encoder, at most 1e-4 apart. Raises InputError
        before anything is written, and RunError where a form does not compute what the encoder does.
        """
        asked = asked_for(to, os.fspath(folder), takes, license)
        written = write(self.path, self.recipe, self.encoder, self.depth, asked)
        return {form.target: form.path for form in written}

    @property
    def classes(self) -> list[str] | list[int]:
        """(C,) what the training data call the classes."""
        found = self._fine_tuned()
        return found.names or found.values

    def _fine_tuned(self) -> StoredClassifier:
        if self._classifier is None:
            self._classifier = load_classifier(str(self.path if self.path.is_dir() else self.path.parent))
        return self._classifier

    @torch_as_it_starts()
    def _applied(
        self, network: nn.Module, recipe: Recipe, depth: Depth | None, images: Any, batch_size: int | None
    ) -> NDArray[np.float32]:
        if batch_size is not None:
            if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
                raise InputError(f"batch_size={batch_size!r} must be a whole number, 1 or more")
            evaluation = recipe.eval.model_copy(update={"batch_size": batch_size})
            recipe = recipe.model_copy(update={"eval": evaluation})
        samples = samples_of(images, recipe.data, depth=depth)
        check_width(recipe, samples)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_unreadable": 1.0})})
        source, _ = local.open_sources(recipe, samples, None)
        if source.skipped:
            raise InputError(
                f"{len(source.skipped)} of {len(samples)} images cannot be read: {source.skipped[0]}; leave them out"
            )
        rows: NDArray[np.float32] = embed(
            network, source, recipe, self.device, np.arange(len(samples))
        ).numpy()
        return rows


def check_width(recipe: Recipe, samples: Samples) -> None:
    """Raises InputError for vectors where images are wanted, or those of another width."""
    width, pixels = samples.width(), 3 * recipe.views.size**2
    wanted = (recipe.encoder.inputs or pixels) if recipe.encoder.name == "mlp" else None
    if (width or pixels) != (wanted or pixels) or (width and not wanted):
        of_images = f"images are {recipe.views.size} pixels wide, {pixels} values"
        needs = f"vectors of {wanted} values ({of_images})" if wanted else "images"
        given = f"vectors of {width} values" if width else "images"
        raise InputError(f"the encoder takes {needs}, and {given} were given")


def load(run: str | os.PathLike[str], *, device: str | torch.device | None = None) -> TrainedModel:
    """The model of a run directory, an `encoder.safetensors` or a `classifier-NAME.safetensors`.

    How images are prepared travels with each of them. `device`: a GPU where there is one, by default. Raises
    InputError where there is no model, or none yet.
    """
    path = given_path("run", os.fspath(run)).absolute()
    return TrainedModel(path, chosen_device(device))


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Raises InputError for one that cannot be used here."""
    return default_device() if device is None else named_device(str(device))
