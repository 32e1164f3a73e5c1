"""COCO's average precision of boxes and masks, and its interval: a bootstrap over the test images.

pycocotools finds which detections match which objects, once. A resampling takes each image with all its detections and
objects a number of times, and ranks and averages anew as COCOeval.accumulate does.

Letters: n detections of a category, I images, T = 10 overlaps, .5 to .95, at which they match.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysurl import intervals
from raysurl.data.coco import Instances
from raysurl.intervals import Measured

KINDS = {"box": "bbox", "mask": "segm"}
AT = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}  # of the overlaps
MOST = 100  # detections of an image that count
RECALLS = np.linspace(0.0, 1.0, 101)

Counts = NDArray[np.int64]


def judged(
    instances: Instances, ids: Sequence[int], results: Sequence[dict[str, Any]], *, seed: int = 0
) -> dict[str, float]:
    """`box_ap`, `box_ap50`, `box_ap75` and the same of masks, in percent, by COCOeval, of the images `ids`."""
    if not results:  # nothing was found
        return {f"{of}_{ap}": Measured(0.0, (0.0, 0.0)) for of in KINDS for ap in AT}
    found: dict[str, float] = {}
    for name, evaluation in evaluated(instances, ids, results).items():
        categories = matches(evaluation)
        for value, (ap, at) in zip(evaluation.stats[:3], AT.items(), strict=True):
            found[f"{name}_{ap}"] = measured(float(value), categories, len(ids), at, seed, f"{name} {ap}")
    return found


def evaluated(instances: Instances, ids: Sequence[int], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """pycocotools' COCOeval of boxes and of masks, which has evaluated, accumulated and summarised."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(instances.tree)  # it writes into what it is given
        truth.createIndex()
        given = truth.loadRes([dict(one) for one in results])
        for name, kind in KINDS.items():
            found[name] = evaluation = COCOeval(truth, given, kind)
            evaluation.params.imgIds = sorted(ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    return found


def measured(
    value: float, categories: Sequence[Matches], images: int, at: slice, seed: int, name: str
) -> Measured:
    """The share that COCOeval found, in percent, with its interval."""
    drawn = intervals.bootstrap(
        images, lambda taken: 100 * precision(categories, taken, at), seed=seed, name=f"detection {name}"
    )
    return Measured(100 * value, drawn.interval)


@dataclass(frozen=True)
class Matches:
    """Of one category, by falling score: of which image each detection is (n,), whether it matches an object (T, n)
    and whether it is left out (T, n); and how many objects each image shows (I,)."""

    image: Counts
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: Counts


def matches(evaluation: Any) -> list[Matches]:
    """Of a COCOeval that has evaluated: objects of all sizes, at most MOST detections of an image."""
    p = evaluation._paramsEval
    images, sizes, found = len(p.imgIds), len(p.areaRng), []
    for category in range(len(p.catIds)):
        first = category * sizes * images  # all sizes come first
        of = [(i, e) for i, e in enumerate(evaluation.evalImgs[first : first + images]) if e is not None]
        if not of:
            continue
        scores = np.concatenate([e["dtScores"][:MOST] for _, e in of])
        order = np.argsort(-scores, kind="mergesort")
        objects = np.zeros(images, np.int64)
        for i, e in of:
            objects[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        image = np.concatenate([np.full(len(e["dtScores"][:MOST]), i) for i, e in of])
        right = np.concatenate([e["dtMatches"][:, :MOST] for _, e in of], axis=1)
        ignored = np.concatenate([e["dtIgnore"][:, :MOST] for _, e in of], axis=1)
        found.append(
            Matches(image[order].astype(np.int64), right[:, order] > 0, ignored[:, order] > 0, objects)
        )
    return found


def precision(categories: Sequence[Matches], taken: Counts, at: slice = AT["ap"]) -> float:
    """Mean over overlaps and over the categories that are shown of the precision at 101 recalls, images taken so often
    (I,); 0 where none is shown."""
    found = [_of_category(one, taken, at) for one in categories if one.objects @ taken]
    return float(np.mean(found)) if found else 0.0


def _of_category(one: Matches, taken: Counts, at: slice) -> float:
    weight = np.where(one.ignored[at], 0.0, taken[one.image])
    right = np.cumsum(weight * one.right[at], axis=1)
    seen = np.cumsum(weight, axis=1)
    highest = np.maximum.accumulate((right / (seen + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(highest, ((0, 0), (0, 1)))  # recalls that are not reached
    recall = right / (one.objects @ taken)
    at_recalls = [
        row[np.searchsorted(reached, RECALLS, side="left")]
        for row, reached in zip(padded, recall, strict=True)
    ]
    return float(np.mean(at_recalls))
