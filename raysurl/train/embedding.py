"""What the map of a run is made of: embeddings of some of the samples that it is evaluated on, with thumbnails.

Letters: N points, D values.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raysurl.data.source import Images, Source
from raysurl.embed import plain_images
from raysurl.evaluate.division import some
from raysurl.evaluate.evaluator import Evaluated, Evaluator
from raysurl.recipe import Recipe
from raysurl.sampler import Request

FILE, SHEET = "embedding.npz", "thumbnails.webp"  # in samples/
LEAST_STEPS = (
    200  # of a run whose embeddings are mapped: the map takes seconds, which a shorter one need not wait
)
LEAST_POINTS = 20
PIXELS = 6_000_000  # of all thumbnails: about two megabytes
SIDES = (96, 64, 48, 32, 24, 16)  # of a thumbnail, the first for which there is room
QUALITY = 75
BLOCK = 256  # images that are held at once
CPU = torch.device("cpu")


def save_embedding(
    run_dir: Path,
    recipe: Recipe,
    evaluated: Evaluated,
    evaluator: Evaluator,
    clusters: NDArray[np.int64] | None,
    *,
    steps: int,
) -> None:
    """`samples/embedding.npz`: rows of at most `eval.map_points` train and test samples, a draw.

    `features` (N, D) fp32, `index`, `split` (0 train, 1 test) and `labels` (N,), −1 = none; `clusters` (levels, N), of
    all of which `clusters` (levels, samples) are given; `seed`. Beside it their thumbnails, row by row.
    """
    features, bank, test = evaluated.features, evaluated.bank, evaluator.test
    assert features is not None
    total, flat = len(bank) + len(features.test), features.train.shape[1] == 2
    count = min(recipe.eval.map_points, total)
    if count < LEAST_POINTS or features.train.shape[1] < 2 or (steps < LEAST_STEPS and not flat):
        return
    chosen = some(total, count, 0, "map").numpy()
    split = (chosen >= len(bank)).astype(np.uint8)
    first, rest = chosen[split == 0], chosen[split == 1] - len(bank)
    arrays = {
        "features": _joined(features.train, features.test, first, rest).astype(np.float32),
        "labels": _joined(features.train_labels, features.test_labels, first, rest),
        "index": np.concatenate([bank[first], test[rest]]),
        "split": split,
        "seed": np.array(int(recipe.seed)),
    }
    if clusters is not None and len(clusters):
        # those of test samples, which memory does not hold, are not known
        own = evaluator.test_source is evaluator.source
        unknown = np.full((len(clusters), len(rest)), -1)
        arrays["clusters"] = np.concatenate(
            [clusters[:, bank[first]], clusters[:, test[rest]] if own else unknown], axis=1
        )
    (run_dir / "samples").mkdir(exist_ok=True)
    parts = [(evaluator.source, bank[first]), (evaluator.test_source, test[rest])]
    side = side_of(count, recipe.views.size)
    if sheet := _sheet(recipe, [part for part in parts if len(part[1])], side):
        sheet.save(run_dir / "samples" / SHEET, quality=QUALITY, method=2, lossless=side <= 16)
        arrays["side"] = np.array(side)
    np.savez(run_dir / "samples" / FILE, **arrays)  # type: ignore[arg-type]


def side_of(count: int, size: int) -> int:
    """Of the thumbnail of an image of `size` pixels, among so many."""
    room = math.isqrt(PIXELS // count)
    return min(size, next((side for side in SIDES if side <= room), SIDES[-1]))


def _joined(
    train: Tensor, test: Tensor, first: NDArray[np.int64], rest: NDArray[np.int64]
) -> NDArray[np.generic]:
    return np.concatenate([train[first].cpu().numpy(), test[rest].cpu().numpy()])


def _sheet(recipe: Recipe, parts: list[tuple[Source, NDArray[np.int64]]], side: int) -> Image.Image | None:
    """All thumbnails in one square picture, row by row; None of vectors."""
    count = sum(len(index) for _, index in parts)
    columns = math.isqrt(count - 1) + 1
    pixels = np.zeros((-(-count // columns), columns, side, side, 3), np.uint8)
    place = 0
    for source, index in parts:
        requests = [Request(0, 0, index[i : i + BLOCK]) for i in range(0, len(index), BLOCK)]
        for small in source.batches(requests, lambda _, images: _thumbnails(recipe, images, side)):
            if small is None:
                return None
            at = np.arange(place, place + len(small))
            pixels[at // columns, at % columns] = small
            place += len(small)
    rows = pixels.shape[0]
    return Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3))


def _thumbnails(recipe: Recipe, images: Images, side: int) -> NDArray[np.uint8] | None:
    if isinstance(images, Tensor) and images.dim() == 2:
        return None  # vectors have no picture
    shown = plain_images(recipe, images, CPU)
    if shown.shape[-1] > side:
        shown = F.interpolate(shown, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (recipe.views.mean, recipe.views.std))
    pixels = ((shown * std + mean) * 255).round().clamp(0, 255).byte()
    found: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).numpy()
    return found
