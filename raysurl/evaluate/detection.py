"""Object detection and instance segmentation (raysurl.evaluate.detecting, which all ranks run): what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.recipe import Evaluation

NEEDS = frozenset({"instances"})
OF_PIXELS = False
NAMES = tuple(f"{of}_{ap}" for of in ("box", "mask") for ap in ("ap", "ap50", "ap75"))


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """COCO's average precision in percent: `eval/box_ap`, at an overlap of a half `eval/box_ap50`, of three quarters
    `eval/box_ap75`, and the same of masks."""
    for name, value in (features.detected or {}).items():
        yield f"eval/{name}", value


def names(settings: Evaluation, division: Division) -> list[str]:
    return [f"eval/{name}" for name in NAMES]
