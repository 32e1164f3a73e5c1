"""Charts of a report: smoothing, thinning of long lines, bars, escaping, and numbers as they are shown."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysurl.report import charts, duration, plotted
from raysurl.report.run import shown


def test_moving_average_is_centred_and_keeps_constants() -> None:
    y = np.arange(300.0)
    assert charts.moving_average(np.full(300, 2.5)) == pytest.approx(2.5)
    smooth = charts.moving_average(y)
    assert smooth[5:-5] == pytest.approx(y[5:-5])  # a line stays where it is
    assert smooth[100] == pytest.approx(y[97:104].mean())


def figures_in(html: str) -> list[Any]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def test_a_line_keeps_its_extremes_and_stays_small() -> None:
    y = np.zeros(50_000)
    y[12_345], y[40_000] = 1.0, -1.0
    html = charts.line_chart("t", [charts.Series("s", np.arange(50_000.0), y)], x_name="step")
    (figure,) = figures_in(html)
    (line,) = figure["data"]
    peak, hole = line["y"].index(1.0), line["y"].index(-1.0)
    assert (line["x"][peak], line["x"][hole]) == (12_345, 40_000)
    assert (line["x"][0], line["x"][-1]) == (0, pytest.approx(49_999))
    assert len(line["x"]) < 700
    assert len(html) < 20_000


def test_charts_of_nothing_one_point_and_a_constant() -> None:
    assert charts.line_chart("t", [charts.Series.of("s", [])], x_name="step") == ""
    assert charts.line_chart("t", [charts.Series.of("s", [(0, float("nan"))])], x_name="step") == ""
    for points in ([(3.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1e-12), (1.0, 1e-12)]):
        (figure,) = figures_in(charts.line_chart("t", [charts.Series.of("s", points)], x_name="step"))
        low, high = figure["layout"]["yaxis"]["range"]
        assert low < points[0][1] < high
    (figure,) = figures_in(charts.line_chart("t", [charts.Series.of("s", [(0, 1.0), (1, 2)])], x_name="s"))
    assert "range" not in figure["layout"]["yaxis"]


def test_bars_begin_at_zero_and_carry_their_intervals() -> None:
    bars = [charts.Bar("a", 40.0, (30.0, 55.0)), charts.Bar("b", 20.0), charts.Bar("c", float("nan"))]
    (figure,) = figures_in(charts.bar_chart("t", bars, unit=" %"))
    (trace,) = figure["data"]
    assert trace["x"] == [20.0, 40.0]  # the first on top
    assert trace["error_x"]["array"] == [0.0, 15.0]
    assert trace["error_x"]["arrayminus"] == [0.0, 10.0]
    assert figure["layout"]["xaxis"]["rangemode"] == "tozero"
    assert figure["layout"]["yaxis"]["ticktext"] == ["b", "a"]
    assert charts.bar_chart("t", []) == ""


NASTY = st.lists(st.sampled_from(["</script>", "<!--", "\u2028", "&", "<b>", '"', "\\", "a", "é", "\ud800"]))


@given(NASTY)
def test_no_text_ends_the_data_of_a_figure(parts: list[str]) -> None:
    text = "".join(parts)
    html = plotted.embedded({"x": text, "y": [1.0, float("inf")]})
    inside = html.removeprefix('<script type="application/json">').removesuffix("</script>")
    assert not set(inside) & set("<>&\u2028")
    assert json.loads(inside) == {"x": text, "y": [1.0, None]}


def test_names_are_no_markup_in_a_chart() -> None:
    evil = '<a href="http://a.b">x</a>'
    html = charts.bar_chart("t", [charts.Bar(evil, 1.0)]) + charts.line_chart(
        "t", [charts.Series.of(evil, [(0, 1.0)])], x_name=evil, levels=[charts.Level(evil, 2.0)]
    )
    for figure in figures_in(html):
        assert "<a" not in json.dumps(figure)
    assert "<a" not in html


def test_numbers_are_readable() -> None:
    assert [charts.number(v) for v in (12340.0, 84.3111, -0.06, 1.5e-5, 0.0, float("inf"))] == [
        *("12,340", "84.31", "−0.06", "1.5e-05", "0", "not finite")
    ]
    assert shown("eval/knn_top1", 84.3) == "84.30 %"
    assert shown("speed/data_wait", 0.25) == "25.0 %"
    assert shown("health/std", None) == "–"
    assert [duration(s) for s in (12.4, 134, 3725, None)] == ["12 s", "2 min 14 s", "1 h 2 min", None]
