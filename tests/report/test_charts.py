"""Charts of a report: ticks, smoothing, thinning of long lines, and numbers as they are shown."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raysurl.report import charts, duration
from raysurl.report.run import shown


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0.11, 0.39, 3, [0.2, 0.3]),
        (-1.2, 0.1, 3, [-1, -0.5, 0]),
        (4e3, 9e3, 5, [4e3, 5e3, 6e3, 7e3, 8e3, 9e3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, count: int, expected: list[float]) -> None:
    assert charts.ticks(low, high, count) == pytest.approx(expected)


def test_moving_average_is_centred_and_keeps_constants() -> None:
    y = np.arange(300.0)
    assert charts.moving_average(np.full(300, 2.5)) == pytest.approx(2.5)
    smooth = charts.moving_average(y)
    assert smooth[5:-5] == pytest.approx(y[5:-5])  # a line stays where it is
    assert smooth[100] == pytest.approx(y[97:104].mean())


def test_a_line_keeps_its_extremes_and_stays_small() -> None:
    y = np.zeros(50_000)
    y[12_345] = 1.0
    html = charts.line_chart("t", [charts.Series("s", np.arange(50_000.0), y)], x_name="step")
    heights = [float(v) for v in re.findall(r"[ML][\d.]+ ([\d.]+)", html)]
    assert min(heights) < 100  # the one peak is near the top
    assert max(heights) > 900
    assert len(heights) < 700
    assert len(html) < 100_000


def test_charts_of_nothing_one_point_and_a_constant() -> None:
    assert charts.line_chart("t", [charts.Series.of("s", [])], x_name="step") == ""
    assert charts.line_chart("t", [charts.Series.of("s", [(0, float("nan"))])], x_name="step") == ""
    for points in ([(3.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1e-12), (1.0, 1e-12)]):
        html = charts.line_chart("t", [charts.Series.of("s", points)], x_name="step")
        places = [float(v) for v in re.findall(r"(?:left|top):(-?[\d.]+)%", html)]
        assert places
        assert all(-1 <= place <= 101 for place in places)


def test_numbers_are_readable() -> None:
    assert [charts.number(v) for v in (12340.0, 84.3111, -0.06, 1.5e-5, 0.0, float("inf"))] == [
        *("12,340", "84.31", "−0.06", "1.5e-05", "0", "not finite")
    ]
    assert shown("eval/knn_top1", 84.3) == "84.30 %"
    assert shown("speed/data_wait", 0.25) == "25.0 %"
    assert shown("health/std", None) == "–"
    assert [duration(s) for s in (12.4, 134, 3725, None)] == ["12 s", "2 min 14 s", "1 h 2 min", None]
