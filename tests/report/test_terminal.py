"""Tables of metrics, of which the terminal, notebooks and model cards show the same."""

import io
import json

from rich.console import Console

from raysurl.export import card
from raysurl.interface.results import MetricsTable
from raysurl.report import terminal

METRICS = {
    "eval/knn_top1": 50.0,
    "eval/pixels_knn_top1": 40.0,
    "health/std": 0.5,
    "health/rankme": 9.0,
    "health/untrained_rankme": 7.0,
    "train/loss": 1.5,
}


def test_evaluation_and_health_are_apart_and_no_column_is_empty():
    found = terminal.tables(METRICS, {"eval/knn_top1": (40.25, 60.0)})
    assert [table.kind for table in found] == ["evaluation", "health"]
    assert found[0].head == ["metric", "trained", "95 %", "raw pixels"]
    assert found[0].rows == [["eval/knn_top1", "50.000", "40.25 to 60", "40.000"]]
    assert found[1].head == ["metric", "trained", "untrained"]
    assert [row[0] for row in found[1].rows] == ["health/rankme", "health/std", "train/loss"]
    assert terminal.tables({}, {}) == []


def test_the_terminal_a_notebook_and_a_card_show_no_interval_where_none_is_known(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda: Console(file=text, width=200))
    terminal.show_metrics(METRICS, "a run")
    shown = MetricsTable("a run", METRICS)
    written = card._numbers(json.loads(json.dumps({"metrics": METRICS})))
    for said in (text.getvalue(), repr(shown), shown._repr_html_(), written):
        assert "95 %" not in said.replace("Intervals of 95 %", "")
        assert "knn_top1" in said
        assert "raw pixels" in said
