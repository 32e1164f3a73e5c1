"""What holds for every data source."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raysurl.data.dataset import Samples, Unreadable, evenly
from raysurl.data.names import open_samples
from raysurl.data.plugged import check_samples
from raysurl.errors import first_line
from raysurl.recipe import Data, recipe_from
from raysurl.testing.small import fail, named, require

MOST = 64  # samples that are read


def check_data(
    subject: Callable[..., Samples | None] | str,
    options: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Raises AssertionError, or InputError, for the first thing that a data source does not keep.

    `subject`: a function (data, split, **options) -> Samples, or what `data.name` may be. `options`: as `data.options`;
    `settings`: other settings of the section `data`, as {"path": …}. Some samples of each split are read.
    """
    with named("data", subject) as name:
        tree = {**(settings or {}), "name": name, "options": dict(options or {})}
        data = recipe_from({"data": tree}).data
        train, again = (open_samples(data, "train", seed=0) for _ in range(2))
        require(len(train) > 1, "there is something to train on", f"the split train has {len(train)} samples")
        check_listing(train, again)
        check_reading(train, again, "train")
        check_test_split(data, train)


def check_listing(samples: Samples, again: Samples) -> None:
    """Each sample has a name of its own, and its index is the same whenever the data are listed."""
    check_samples(samples, "samples and what is known of them agree")
    check = "an index means one sample"
    one, other = ([s.name_of(i) for i in range(len(s))] for s in (samples, again))
    require(one == other, check, "listing the data twice gives other names, or another order")
    require(len(set(one)) == len(one), check, "two samples have the same name")
    own, others = samples.original_labels(), again.original_labels()
    require(np.array_equal(own, others), check, "listing the data twice gives other labels")


def check_reading(samples: Samples, again: Samples, split: str) -> None:
    """Samples are read in any order and in any process, and are images or vectors of one width."""
    check, index = f"samples of {split} can be read", evenly(len(samples), MOST)
    found = samples.load(index)
    for sample in found:
        if isinstance(sample, Unreadable):
            fail(check, str(sample))
        else:
            image = sample.dtype == np.uint8 and sample.ndim == 3 and sample.shape[0] == 3
            vector = sample.dtype == np.float32 and sample.ndim == 1
            require(
                image or vector,
                check,
                f"one is {sample.dtype} {sample.shape}; give images, or vectors of floats",
            )
    try:
        elsewhere = pickle.loads(pickle.dumps(again))
    except Exception as error:  # of whatever it holds
        fail("other processes can read it", f"it cannot be pickled ({first_line(error)})")
    backwards = elsewhere.load(index[::-1].copy())[::-1]
    pairs: list[tuple[Any, Any]] = list(zip(found, backwards, strict=True))
    same = all(np.array_equal(one, other) for one, other in pairs)
    require(same, check, "read again, in another order and from a copy, they are others")
    widths = {
        sample.shape if sample.ndim == 1 else () for sample in found if not isinstance(sample, Unreadable)
    }
    require(
        len(widths) == 1,
        check,
        f"some are images and some vectors, or vectors of other widths: {sorted(widths)}",
    )


def check_test_split(data: Data, train: Samples) -> None:
    """Where there is a test set, its samples are other ones of the same kind and the same classes."""
    test, again = (open_samples(data, "eval", seed=0) for _ in range(2))
    if test is None or again is None:
        return
    check_listing(test, again)
    check_reading(test, again, "eval")
    check = "the test set is of the same kind"
    require(
        test.width() == train.width(), check, "one split has images and the other vectors, or other widths"
    )
    classes = (train.class_names, test.class_names)
    require(None in classes or classes[0] == classes[1], check, "its classes are named otherwise")
    if train.labels is not None and test.labels is not None:
        more = sorted(set(test.labels[test.labels >= 0].tolist()) - set(train.labels.tolist()))
        require(not more, check, f"it has labels that training has not: {more[:5]}")
