"""Intervals: against scipy's and published numbers, and by how often they hold the truth."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysurl import health, intervals
from raysurl.intervals import Measured


@given(of=st.integers(1, 5000), share=st.floats(0, 1))
@settings(max_examples=60)
def test_wilsons_interval_is_scipys(of, share):
    count = round(share * of)
    low, high = intervals.wilson(count, of)
    expected = stats.binomtest(count, of).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= count / of <= high <= 1


def test_no_samples_say_nothing():
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def both(a, b, c, d):
    """Samples that both, only the first, only the second, and neither have right."""
    first = np.repeat([True, True, False, False], [a, b, c, d])
    return first, np.repeat([True, False, True, False], [a, b, c, d])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [  # Newcombe 1998, table II, method 10
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((50, 0, 0, 0), (-0.0714, 0.0714)),
    ],
)
def test_the_paired_difference_is_newcombes(cells, expected):
    found = intervals.paired(*both(*cells))
    assert float(found) == pytest.approx(100 * (cells[1] - cells[2]) / sum(cells))
    assert found.interval == pytest.approx([100 * end for end in expected], abs=0.05)


def test_a_paired_interval_is_turned_with_its_arms_and_narrower_than_an_unpaired_one():
    first, second = both(700, 60, 40, 200)
    one, other = intervals.paired(first, second), intervals.paired(second, first)
    assert (one.interval[0], one.interval[1]) == pytest.approx((-other.interval[1], -other.interval[0]))
    apart = [intervals.accuracy(x).interval for x in (first, second)]
    assert one.interval[1] - one.interval[0] < (apart[0][1] - apart[1][0]) - (apart[0][0] - apart[1][1])


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_intervals_hold_the_truth_as_often_as_they_say(gain):
    random, held = np.random.default_rng(0), []
    for _ in range(400):
        easy, noise = random.random(500), random.random((2, 500))
        first = np.where(noise[0] < 0.5, easy, random.random(500)) < 0.6 + gain
        second = np.where(noise[1] < 0.5, easy, random.random(500)) < 0.6
        low, high = intervals.paired(first, second).interval
        held.append(low <= 100 * gain <= high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_the_bootstrap_agrees_with_theory_and_repeats():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = intervals.bootstrap_mean(values, seed=0, name="x")
    half = 1.96 * values.std() / 20
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)
    assert intervals.bootstrap_mean(values, seed=0, name="x").interval == found.interval
    by_counts = intervals.bootstrap(400, lambda taken: float(taken @ values / taken.sum()), seed=0, name="y")
    assert float(by_counts) == pytest.approx(values.mean())
    assert by_counts.interval == pytest.approx(found.interval, abs=0.05)


def test_over_seeds_is_students_t():
    values = [41.0, 42.5, 40.7]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert intervals.over_seeds(values) == pytest.approx(expected)
    assert intervals.over_seeds([1.0]) is None
    assert intervals.of_mean(np.mean(values), np.std(values, ddof=1), 3) == pytest.approx(expected)


def test_a_measured_number_is_a_number_that_travels():
    value = intervals.accuracy(np.array([True, False, True]))
    copy = pickle.loads(pickle.dumps(value))
    assert (copy, copy.interval, copy.right.tolist()) == (value, value.interval, [True, False, True])
    assert value + 1 == pytest.approx(200 / 3 + 1)
    assert intervals.of_metrics({"a": value, "b": 1.0, "c": Measured(2.0)}) == {"a": list(value.interval)}


def test_gains_are_of_the_same_test_samples_alone():
    first, second = both(40, 30, 5, 25)
    metrics = {
        "eval/knn_top1": intervals.accuracy(first),
        "p": intervals.accuracy(second),
        "q": intervals.accuracy(second[:9]),
    }
    found = intervals.gains(metrics, "eval/knn_top1", {"pixels": "p", "untrained": "q", "none": "r"})
    assert set(found) == {"pixels"}
    assert found["pixels"][0] == pytest.approx(25.0)
    assert found["pixels"][1] > 0


@pytest.mark.parametrize(
    ("gain", "said"), [([0.2, -0.1, 0.5], True), ([0.2, 0.1, 0.3], False), ([-2.0, -3.0, -1.0], True)]
)
def test_no_gain_means_that_the_interval_holds_zero_or_less(gain, said):
    metrics = {"eval/knn_top1": 80.0, "eval/pixels_knn_top1": 80.0 - gain[0]}
    found = health.diagnose(metrics, {"eval/knn_top1": {"pixels": gain}})
    assert [sentence.startswith("no gain") for sentence in found] == [True] * said
