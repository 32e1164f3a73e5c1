"""Pictures for the report: the views that the method really saw, and nearest neighbours of some images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysurl.data.source import Source
from raysurl.embed import augmented_images, images_alone, plain_images
from raysurl.evaluate import Features
from raysurl.evaluate.augmenting import disturbing
from raysurl.evaluate.evaluator import Evaluator
from raysurl.evaluate.nearest import nearest
from raysurl.recipe import Recipe
from raysurl.report.contact_sheet import sheet
from raysurl.sampler import Plan, Request
from raysurl.views.augmenter import Augment

SHOWN_VIEWS, SHOWN_ROWS, SHOWN_NEIGHBOURS, SHOWN_QUERIES = 8, 10, 10, 3
BANK_LIMIT = 20_000  # neighbours for the report are looked for among so many samples
CPU = torch.device("cpu")


def save_views(run_dir: Path, recipe: Recipe, source: Source, the_plan: Plan, augment: Augment) -> None:
    """`samples/views.npz`: the first samples of the run's first batch, plain and as each view."""
    if (run_dir / "samples" / "views.npz").exists():
        return
    index = the_plan.global_batch(0)
    request = Request(0, 0, index[:SHOWN_VIEWS])
    (images,) = source.batches([request], images_alone)
    views = {"original": plain_images(recipe, images, CPU), **augment(request, images, CPU)}
    if all(x.dim() == 4 for x in views.values()):
        _save(run_dir, "views", {name: _to_uint8(x, recipe) for name, x in views.items()})


def save_neighbours(
    run_dir: Path, recipe: Recipe, features: Features, source: Source, bank: NDArray[np.int64]
) -> None:
    """`samples/neighbours.npz`: evenly spaced bank images with their nearest others by cosine."""
    z = F.normalize(features.train[:BANK_LIMIT], dim=1)
    if len(z) <= SHOWN_NEIGHBOURS:
        return
    anchors = torch.linspace(0, len(z) - 1, SHOWN_ROWS).long().to(z.device)
    cosine = z[anchors] @ z.T
    cosine[torch.arange(len(anchors)), anchors] = 2.0  # the image itself comes first
    similarity, columns = cosine.topk(SHOWN_NEIGHBOURS + 1, dim=1)
    index = bank[columns.cpu().numpy()]
    (images,) = source.batches([Request(0, 0, index.ravel())], images_alone)
    if isinstance(images, Tensor) and images.dim() == 2:
        return  # vectors have no picture
    pictures = _to_uint8(plain_images(recipe, images, CPU), recipe)
    arrays = {
        "images": pictures.reshape(*index.shape, *pictures.shape[1:]),
        "labels": features.train_labels[columns].cpu().numpy(),
        "similarity": similarity.clamp(max=1).cpu().numpy(),
    }
    _save(run_dir, "neighbours", arrays)


def save_disturbed(run_dir: Path, recipe: Recipe, features: Features, evaluator: Evaluator) -> None:
    """`samples/disturbed.npz`: nearest bank images of some test images, plain and augmented by each policy."""
    count, bank, test = len(features.test), evaluator.bank, evaluator.test
    if not features.disturbed or len(features.train) < SHOWN_NEIGHBOURS:
        return
    chosen = torch.linspace(0, count - 1, min(SHOWN_QUERIES, count)).long()
    views = {"plain": features.test, **features.disturbed}
    queries = torch.stack([rows[chosen.to(rows.device)] for rows in views.values()], 1).flatten(0, 1)
    similarity, found = (x.cpu() for x in nearest(features.train, queries, SHOWN_NEIGHBOURS))
    (own,) = evaluator.test_source.batches([Request(0, 0, test[chosen.numpy()])], images_alone)
    if isinstance(own, Tensor) and own.dim() == 2:
        return  # vectors have no picture
    seen = [plain_images(recipe, own, CPU)]
    seen += [
        augmented_images(recipe, own, CPU, disturbing(recipe, name), chosen) for name in features.disturbed
    ]
    first = torch.stack(seen, 1).flatten(0, 1)[:, None]
    (images,) = evaluator.source.batches([Request(0, 0, bank[found.numpy()].ravel())], images_alone)
    others = plain_images(recipe, images, CPU)
    shown = torch.cat([first, others.view(*found.shape, *others.shape[1:])], 1)
    labels = features.test_labels.cpu()[chosen].repeat_interleave(len(views))[:, None]
    arrays = {
        "images": _to_uint8(shown.flatten(0, 1), recipe).reshape(*shown.shape[:2], *shown.shape[3:], 3),
        "labels": torch.cat([labels, features.train_labels.cpu()[found]], 1).numpy(),
        "similarity": torch.cat([torch.ones(len(shown), 1), similarity.clamp(max=1)], 1).numpy(),
        "rows": np.array(list(views) * len(chosen)),
    }
    _save(run_dir, "disturbed", arrays)


def save_distances(run_dir: Path, histograms: Mapping[str, NDArray[np.int64]]) -> None:
    """`samples/distances.npz`: histograms (2, B) of raysurl.evaluate.distances, by the space that they are of."""
    if histograms:
        _save(run_dir, "distances", dict(histograms))


def save_clusters(run_dir: Path, recipe: Recipe, source: Source, labels: NDArray[np.int64] | None) -> None:
    """`samples/clusters.npz`: images of some of the clusters `labels` (levels, N), finest first, line by line."""
    lines = [] if labels is None else sheet(labels, source.readable, source.labels, seed=recipe.stream_seed)
    if not lines:
        return
    index = np.concatenate([line.samples for line in lines])
    (images,) = source.batches([Request(0, 0, index)], images_alone)
    if isinstance(images, Tensor) and images.dim() == 2:
        return  # vectors have no picture
    columns = ("chosen", "level", "size", "children", "common", "share")
    arrays = {
        "images": _to_uint8(plain_images(recipe, images, CPU), recipe),
        "labels": np.full(len(index), -1) if source.labels is None else source.labels[index],
        "line": np.repeat(np.arange(len(lines)), [len(line.samples) for line in lines]),
        **{name: np.array([getattr(line, name) for line in lines]) for name in columns},
    }
    _save(run_dir, "clusters", arrays)


def _to_uint8(x: Tensor, recipe: Recipe) -> NDArray[np.uint8]:
    """Normalised (n, 3, H, W) -> uint8 (n, H, W, 3)."""
    mean = torch.tensor(recipe.views.mean).view(3, 1, 1)
    std = torch.tensor(recipe.views.std).view(3, 1, 1)
    pixels: NDArray[np.uint8] = (
        ((x.cpu() * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    )
    return pixels


def _save(run_dir: Path, name: str, arrays: dict[str, NDArray[np.generic]]) -> None:
    (run_dir / "samples").mkdir(exist_ok=True)
    np.savez_compressed(run_dir / "samples" / f"{name}.npz", **arrays)  # type: ignore[arg-type]
