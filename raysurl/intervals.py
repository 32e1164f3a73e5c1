"""Intervals of 95 %: of an accuracy, of the difference of two on the same samples, of a mean, over seeds.

What is resampled is the test set, so that an interval says how far another test set of that size would move a number;
what another seed would change, `over_seeds` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# scipy.stats, whose quantiles these are, takes half a second to import
from scipy.special import ndtri, stdtrit

from raysurl.streams import numpy_stream

LEVEL = 0.95
Z = float(ndtri(0.5 + LEVEL / 2))
RESAMPLES = 1000

Interval = tuple[float, float]


class Measured(float):
    """A metric with its interval, and of an accuracy which test samples were right, (Q,) bool, in their order."""

    interval: Interval | None
    right: NDArray[np.bool_] | None

    def __new__(
        cls, value: float, interval: Interval | None = None, right: NDArray[np.bool_] | None = None
    ) -> Measured:
        made = super().__new__(cls, value)
        made.interval, made.right = interval, right
        return made


def accuracy(right: NDArray[np.bool_]) -> Measured:
    """Share of true ones among (Q,), in percent, with the interval of `wilson`."""
    count = int(right.sum())
    low, high = wilson(count, len(right))
    return Measured(100.0 * count / max(len(right), 1), (100.0 * low, 100.0 * high), right)


def wilson(count: int, of: int) -> Interval:
    """The score interval of a proportion (Wilson 1927), shares in [0, 1]; the whole of it where `of` is 0."""
    if not of:
        return 0.0, 1.0
    share, shrink = count / of, 1 + Z**2 / of
    middle = (share + Z**2 / (2 * of)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    # the ends are 0 and 1 where all samples agree, but for rounding
    return (0.0 if not count else max(middle - half, 0.0)), (1.0 if count == of else min(middle + half, 1.0))


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Measured:
    """`first` − `second`, accuracies in points on the same samples (Q,): Newcombe 1998 ("Improved confidence intervals
    for the difference between binomial proportions based on paired data"), method 10, from both score intervals and the
    correlation of the two."""
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    p, q = (both + only_first) / n, (both + only_second) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + only_first, n), wilson(both + only_second, n)
    margins = [both + only_first, both + only_second, neither + only_first, neither + only_second]
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(math.prod(margins)) if all(margins) else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0))

    low = p - q - distance(p - p_low, q_high - q)
    high = p - q + distance(p_high - p, q - q_low)
    return Measured(100.0 * (p - q), (100.0 * low, 100.0 * high))


def bootstrap(
    count: int,
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    seed: int,
    name: str,
    shifted: bool = False,
) -> Measured:
    """`statistic` of `count` samples, given how often each is taken, (count,); percentiles over RESAMPLES draws.

    `shifted`: of a statistic that repeated samples raise or lower, such as mutual information, by the mean difference
    that they make, so that the interval lies about the value.
    """
    stream = numpy_stream(seed, "bootstrap", name)
    chances = np.full(count, 1 / count)
    drawn = np.array([statistic(stream.multinomial(count, chances)) for _ in range(RESAMPLES)])
    value = statistic(np.ones(count, np.int64))
    return Measured(value, percentiles(drawn + (value - drawn.mean()) if shifted else drawn))


def bootstrap_mean(values: NDArray[np.floating[Any]], *, seed: int, name: str) -> Measured:
    """Mean of (Q,), with percentiles of its bootstrap."""
    stream = numpy_stream(seed, "bootstrap", name)
    drawn = [float(values[stream.integers(len(values), size=len(values))].mean()) for _ in range(RESAMPLES)]
    return Measured(float(values.mean()), percentiles(drawn))


def percentiles(drawn: Sequence[float] | NDArray[np.floating[Any]]) -> Interval:
    low, high = np.quantile(np.asarray(drawn, np.float64), (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
    return float(low), float(high)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Of the mean of runs that differ in their seed: Student's t. None for fewer than two."""
    if len(values) < 2:
        return None
    return of_mean(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))


def of_mean(mean: float, deviation: float, count: int) -> Interval:
    """Of the mean of `count` runs, two or more, whose standard deviation (of a sample) is known: Student's t."""
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def of_metrics(metrics: Mapping[str, float]) -> dict[str, list[float]]:
    """Name -> [low, high] of those metrics that have one, for a JSON file."""
    found = {name: value.interval for name, value in metrics.items() if isinstance(value, Measured)}
    return {name: list(interval) for name, interval in found.items() if interval}


def gains(metrics: Mapping[str, float], name: str, baselines: Mapping[str, str]) -> dict[str, list[float]]:
    """Baseline -> [points by which `name` exceeds it, low, high], for each whose metric (its value) was judged on the
    same samples."""
    own, found = metrics.get(name), {}
    for baseline, other in baselines.items():
        theirs = metrics.get(other)
        if not (isinstance(own, Measured) and isinstance(theirs, Measured)):
            continue
        if own.right is not None and theirs.right is not None and len(own.right) == len(theirs.right):
            gain = paired(own.right, theirs.right)
            found[baseline] = [float(gain), *(gain.interval or ())]
    return found
