"""What holds for every protocol, and for every policy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from raysurl import evaluate, streams
from raysurl.evaluate import Features, divide
from raysurl.recipe import Views, recipe_from
from raysurl.testing.small import named, require
from raysurl.views import named_policy
from raysurl.views.augment import apply
from raysurl.views.augment import check_policy as policy_fits
from raysurl.views.draws import draw

TRAIN, TEST, WIDTH, CLASSES = 60, 30, 8, 3


def check_protocol(subject: Any) -> None:
    """Raises AssertionError, or InputError, for the first thing that a protocol does not keep.

    `subject`: a module or an object with NEEDS, OF_PIXELS, run and names, or what `eval.protocols` may hold. It judges
    features of three classes; one that NEEDS more than labels and inputs is given its names alone.
    """
    with named("protocol", subject) as name:
        settings = recipe_from({"eval": {"protocols": [name]}}).eval
        needs = evaluate.needs(name)
        labels = np.arange(TRAIN) % CLASSES
        division = divide(labels, np.arange(TRAIN), None, np.arange(TEST))
        promised = evaluate.names([name], settings, division)
        require(bool(promised), "its metrics have names", "names(settings, division) gives none")
        odd = sorted(n for n in promised if n.count("/") != 1)
        require(not odd, "its metrics have names", f"{odd[:1]} is not of the form eval/NAME or health/NAME")
        if needs - {"labels", "targets", "inputs"}:
            return
        features = _features()
        found, again = (evaluate.evaluate(features, settings, seed=0) for _ in range(2))
        check = "it gives what it names"
        require(set(found) == promised, check, f"it names {sorted(promised)} and gives {sorted(found)}")
        wrong = sorted(n for n, value in found.items() if not math.isfinite(value))
        require(not wrong, check, f"{', '.join(wrong)} is not finite")
        require(found == again, "the same features and seed have the same result", "they have another")


def _features() -> Features:
    """Features around a centre for each class."""
    draws = streams.torch_stream(0, "features")
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=draws)
    labels = [torch.arange(count) % CLASSES for count in (TRAIN, TEST)]
    train, test = (centres[of] + torch.randn(len(of), WIDTH, generator=draws) for of in labels)
    return Features(
        train, labels[0], test, labels[1], CLASSES, inputs=torch.rand(TRAIN, 3, 8, 8, generator=draws)
    )


def check_policy(subject: Any, *, size: int = 8) -> None:
    """Raises AssertionError, or InputError, where a policy is none, or gives no views of `size` pixels."""
    with named("policy", subject) as name:
        policy = named_policy(name)
        policy_fits(policy, size, f"policy {name}")
        shape, stream = (4, 3, size, size), streams.torch_stream(0, "images")
        images = torch.randint(256, shape, generator=stream, dtype=torch.uint8)
        draws, settings = draw(policy, 4, seed=0, step=0, view="view"), Views(size=size)
        view = apply(policy, images, draws, size=size, mean=settings.mean, std=settings.std)
        wanted, check = (4, 3, *2 * (policy.size or size,)), "a policy makes a view"
        require(tuple(view.shape) == wanted, check, f"it is {tuple(view.shape)}, not {wanted}")
        require(bool(torch.isfinite(view).all()), check, "some of its values are not finite")
