"""The model that is served: one encoder, the classifier of the same run where there is one, and an index of images.

Letters: b images of a batch, D values of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysurl.classifier import StoredClassifier, load_classifier
from raysurl.curation.rows import Rows, unit
from raysurl.curation.searching import encoder_of_index
from raysurl.curation.stored_index import StoredIndex, open_index
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.decode import Array
from raysurl.data.depth import Depth
from raysurl.data.gather import stack
from raysurl.data.manifest import Listing
from raysurl.data.names import flattened, measured
from raysurl.data.readers import Stamp
from raysurl.embed import embed_images
from raysurl.encoder import input_shape, load_encoder, preprocessing
from raysurl.errors import InputError
from raysurl.recipe import Data, Recipe
from raysurl.serving.asked import AskedService
from raysurl.serving.images import RefusedError

NO_INDEX = "no index is served; start with index=DIR, which `raysurl index` writes, to ask for neighbours"
NO_CLASSIFIER = (
    "no classifier is served; start with run=DIR of a run that was fine-tuned, or run=FILE of its"
    " classifier-NAME.safetensors, to ask for classes"
)
SEVERAL = "run= holds several classifiers; start with run=FILE of one of them to ask for classes: "


@dataclass(frozen=True)
class Fed:
    """A network, and how images are prepared for it."""

    network: nn.Module
    recipe: Recipe
    depth: Depth | None


@dataclass(frozen=True, eq=False)
class OneImage:
    """Reads the one image that a request holds, as raysurl.data.readers has it."""

    image: bytes
    in_memory: ClassVar[bool] = True
    grouped: ClassVar[bool] = False

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[bytes]:
        return [self.image] * len(rows)


class ServedModel:
    """What answers: embeddings by `encoder`, classes by `classifier`, neighbours by `index`, each where it is there.

    `why_no_classes`: one sentence where there is no classifier.
    """

    def __init__(
        self,
        encoder: Fed,
        classifier: StoredClassifier | None,
        index: StoredIndex | None,
        device: torch.device,
        why_no_classes: str,
    ) -> None:
        self.index, self.device, self.why_no_classes = index, device, why_no_classes
        self.encoder = replace(encoder, network=encoder.network.to(device).eval())
        self.classifier: Fed | None = None
        self.classes: list[Any] = []
        if classifier:
            self.classifier = Fed(classifier.network.to(device).eval(), classifier.recipe, classifier.depth)
            self.classes = [*(classifier.names or classifier.values)]
        for fed in filter(None, (self.encoder, self.classifier)):
            # what only a first image waits for: code is loaded, or compiled once on a machine, and memory is found
            shape = input_shape(fed.recipe)
            self.forward(fed, [np.zeros(shape, np.float32 if len(shape) == 1 else np.uint8)])

    def prepared(self, image: bytes, fed: Fed) -> Array:
        """An image as `embed` decodes it. Raises RefusedError (400) for one that cannot be read."""
        data = fed.recipe.data
        asked = Data(flatten=data.flatten, bits=data.bits, max_unreadable=0, labels="none")
        samples = measured(Samples(Listing.of_rows("image", 1), OneImage(image)), asked, "train", fed.depth)
        if data.flatten is not None:
            samples = flattened(samples, data.flatten)
        found = samples.load(np.arange(1))[0]
        if isinstance(found, Unreadable):
            raise RefusedError(400, f"the image cannot be read: {found.reason}")
        wanted = input_shape(fed.recipe)
        if found.ndim == 1 and len(wanted) == 1 and len(found) != wanted[0]:
            raise RefusedError(400, f"the image has {len(found)} values, and the encoder takes {wanted[0]}")
        return found

    def forward(self, fed: Fed, images: Sequence[Array]) -> NDArray[np.float32]:
        """(b, D) embeddings, or (b, C) scores, of images as `prepared` gives them."""
        rows: NDArray[np.float32] = (
            embed_images(fed.network, fed.recipe, stack(images), self.device).cpu().numpy()
        )
        return rows

    def neighbours(self, row: Rows, k: int) -> list[dict[str, Any]]:
        """The k nearest of the index to an embedding (D,): name, path, class and similarity, the nearest first."""
        assert self.index is not None
        cosines, found = self.index.search(unit(row[None], 0, "the image"), k)
        keep = found[0] >= 0
        rows, table = found[0][keep], self.index.table
        called = self.index.about["of"].get("class_names") or {}
        some = table.take(rows).select(["name", "path", "row", "label"]).to_pylist()
        return [
            {
                "name": of["name"],
                "path": of["path"],
                "row": of["row"],
                "class": called.get(str(of["label"]), of["label"]) if of["label"] >= 0 else None,
                "similarity": min(float(cosine), 1.0),
            }
            for of, cosine in zip(some, cosines[0][keep], strict=True)
        ]

    def most_likely(self, scores: NDArray[np.float32], top: int) -> list[dict[str, Any]]:
        """The classes of most probability, of scores (C,)."""
        probability = torch.softmax(torch.from_numpy(scores).double(), 0).numpy()
        first = np.argsort(-probability, kind="stable")[:top]
        return [{"class": self.classes[i], "probability": float(probability[i])} for i in first]

    def blank(self) -> Array:
        """An image of one colour, or a vector, of the size that the encoder sees."""
        shape = input_shape(self.encoder.recipe)
        return np.zeros(shape, np.uint8 if len(shape) == 3 else np.float32)

    def about(self) -> dict[str, Any]:
        """What is served, for a person: nothing of the machine's paths."""
        recipe, dim = self.encoder.recipe, self.forward(self.encoder, [self.blank()]).shape[1]
        return {
            "encoder": recipe.encoder.name,
            "dim": dim,
            "input": preprocessing(recipe, self.encoder.depth),
            "classes": len(self.classes) or None,
            "index": self.index and {"images": len(self.index), "kind": self.index.about["kind"]},
        }


def load_served(asked: AskedService, device: torch.device) -> ServedModel:
    """Raises InputError where there is no model, one of vectors, or an index of another one's embeddings."""
    index = open_index(asked.index) if asked.index else None
    fed, classifier, why = _networks(asked.run, index)
    model = ServedModel(fed, classifier, index, device, why)
    recipe, named = fed.recipe, f"run={asked.run}" if asked.run else f"index={asked.index}"
    shape, size = input_shape(recipe), recipe.views.size
    if len(shape) == 1 and recipe.data.flatten is None and shape[0] != 3 * size**2:
        raise InputError(f"{named} has an encoder of vectors, and images alone are served")
    if index is not None and (dim := model.about()["dim"]) != index.dim:
        raise InputError(
            f"{named}: its encoder gives {dim} values, and the rows of index={asked.index} have {index.dim}; name the"
            " run whose embeddings it holds"
        )
    return model


def _networks(run: str | None, index: StoredIndex | None) -> tuple[Fed, StoredClassifier | None, str]:
    """The encoder, the classifier, and why there is none."""
    path = Path(run) if run else None
    if path is not None and path.is_file() and path.name.startswith("classifier-"):
        if index is not None:
            raise InputError(
                f"index={index.folder} is of another encoder's embeddings than run={path}, which was fine-tuned; name"
                " the run, or leave index= out"
            )
        found = load_classifier(str(path))
        network: Any = found.network.encoder
        return Fed(network, found.recipe, found.depth), found, ""
    loaded = load_encoder(str(path)) if index is None else encoder_of_index(index, run)
    fed = Fed(loaded.encoder, loaded.recipe, loaded.depth)
    there = sorted(path.glob("classifier-*.safetensors")) if path is not None and path.is_dir() else []
    if len(there) == 1:
        return fed, load_classifier(str(there[0])), ""
    return fed, None, SEVERAL + ", ".join(p.name for p in there) if there else NO_CLASSIFIER


def missing_pages(model: ServedModel) -> dict[str, str]:
    """Page -> one sentence on why it is not there."""
    why = {"/neighbours": NO_INDEX if model.index is None else "", "/classify": model.why_no_classes}
    return {page: said for page, said in why.items() if said}
