"""How far the features of a class are from each other, as a share of all distances."""

from __future__ import annotations

import torch

NEEDS = frozenset({"labels"})
OF_PIXELS = True


def run(features, settings, *, seed=0):
    distances = torch.cdist(features.test.float(), features.test.float())
    same = features.test_labels[:, None] == features.test_labels
    yield "eval/spread", float(distances[same].mean() / distances.mean())


def names(settings, division):
    return ["eval/spread"]
