"""The record of a run: what is kept when it goes on, and how a block of steps is written."""

import json

import pytest
import torch

from raysurl import metrics
from raysurl.errors import RunError


def record(path, **settings):
    return metrics.MetricsWriter(path, start_step=settings.get("start_step", 0), sinks=[])


def test_a_resumed_record_has_each_step_once_and_no_cut_line(tmp_path):
    first = record(tmp_path)
    for step in range(4):
        first.write(step, {"train/loss": float(step)})
    first.event(2, "something happened")
    first.write(2, {"eval/knn_top1": 50.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    again = record(tmp_path, start_step=2)
    again.write(2, {"train/loss": 20.0})
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line] == [
        (0, 0.0),
        (1, 1.0),
        (2, 20.0),
    ]
    assert any(line.get("eval/knn_top1") == 50.0 for line in lines)
    assert any(line.get("event") == "something happened" for line in lines)


def test_a_cut_line_alone_is_removed_too(tmp_path):
    first = record(tmp_path)
    first.write(0, {"train/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"st')
    record(tmp_path, start_step=1).write(1, {"train/loss": 2.0})
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [0, 1]


def test_steps_are_written_in_blocks_a_line_each_and_flushed_where_terms_change(tmp_path):
    block = metrics.StepBlock(3, record(tmp_path), batch_size=8)
    for step in range(4):
        block.add(
            step, step / 2, 0.1, {"loss": torch.tensor(float(step)), "health/std": torch.tensor(1.0)}, 0.0
        )
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 3
    block.add(4, 2.0, 0.1, {"loss": torch.tensor(4.0)}, 0.0)
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 4
    block.flush()
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [line["train/loss"] for line in lines] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [line.get("health/std") for line in lines] == [1.0, 1.0, 1.0, 1.0, None]
    assert sum("speed/images_per_s" in line for line in lines) == 3


def test_a_non_finite_term_is_named_with_its_step_and_nothing_after_it_is_written(tmp_path):
    block = metrics.StepBlock(8, record(tmp_path), batch_size=8)
    for step, value in enumerate((1.0, float("nan"), 3.0)):
        block.add(step, 0.0, 0.1, {"loss": torch.tensor(1.0), "relation": torch.tensor(value)}, 0.0)
    with pytest.raises(RunError, match="train/relation is not finite") as raised:
        block.flush()
    assert raised.value.step == 1
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [0]


def test_other_sinks_get_the_numbers(tmp_path):
    seen = []
    out = metrics.MetricsWriter(
        tmp_path, start_step=0, sinks=[lambda step, values: seen.append((step, values))]
    )
    out.write(3, {"train/loss": 1.5, "note": "text"})
    assert seen == [(3, {"train/loss": 1.5})]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["note"] == "text"
