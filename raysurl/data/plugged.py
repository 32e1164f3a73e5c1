"""Data from outside the package: a function `open(data, split, **options)` that lists the samples of a split.

`data` are the recipe's settings, `split` is "train" or "eval"; it gives `Samples`, or None for "eval" where there is no
test set. Its settings, `data.options`, are its further parameters.
"""

from __future__ import annotations

import numpy as np

from raysurl import plugins
from raysurl.data.dataset import Samples
from raysurl.errors import InputError
from raysurl.recipe import Data
from raysurl.recipe.options import options_of, parameters


def open_plugged(data: Data, split: str) -> Samples | None:
    """The samples that a source lists. Raises InputError for what is no source, and for samples that disagree."""
    said, source = f"data.name={data.name}", plugins.load("data", data.name)
    if not callable(source):
        raise InputError(
            f"{said} is a {type(source).__name__}; name a function of (data, split) that gives Samples"
        )
    first = list(parameters(source))[:2]
    if len(first) < 2:
        raise InputError(
            f"{said} takes {len(first)} parameters; it must take (data, split), and options after them"
        )
    options = options_of(source, data.options, "data.options", own=first)
    try:
        samples = source(data, split, **options)
    except InputError:
        raise
    except Exception as error:  # whatever it meets
        raise InputError(f"{said} cannot be opened: {plugins.told(error, data.name)}") from None
    if samples is None and split == "eval":
        return None
    check_samples(samples, f"{said}, split {split}")
    return samples


def check_samples(samples: Samples, said: str) -> None:
    """Raises InputError, which begins with `said`, where a listing and what is known of its samples disagree."""
    if not isinstance(samples, Samples):
        raise InputError(f"{said}: it gives a {type(samples).__name__}, not raysurl.data.names.Samples")
    count = len(samples)
    for name, dims in (("labels", 1), ("split", 1), ("tags", 2)):
        value = getattr(samples, name)
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != dims:
            raise InputError(
                f"{said}: its {name} are not an array of whole numbers, of {dims} dimension{'s'[: dims - 1]}"
            )
        if len(value) != count:
            raise InputError(
                f"{said}: it lists {count} samples and has {len(value)} {name}; give one for each"
            )
    if samples.labels is not None and count:
        low, high = int(samples.labels.min()), int(samples.labels.max())
        classes = next(
            (len(x) for x in (samples.class_names, samples.label_values) if x is not None), high + 1
        )
        if low < -1 or high >= classes:
            raise InputError(
                f"{said}: its labels run from {low} to {high}, and of its {classes} classes they are 0 … {classes - 1},"
                " or −1 for none"
            )
    if samples.tags is not None and len(samples.tag_names) != samples.tags.shape[1]:
        raise InputError(
            f"{said}: its tags are of {samples.tags.shape[1]} classes and it names {len(samples.tag_names)}"
        )
