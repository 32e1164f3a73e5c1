"""Health signals against closed forms and slow references, and what is said about them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from raysurl import health
from raysurl.errors import InputError

HEALTHY = {
    "health/std": 0.6,
    "health/rankme": 60.0,
    "health/rank_share": 0.25,
    "health/teacher_entropy": 0.7,
    "eval/knn_top1": 80.0,
    "eval/untrained_knn_top1": 50.0,
    "eval/pixels_knn_top1": 60.0,
}


def normal(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_signals_match_slow_references() -> None:
    rows = normal(30, 6) + 0.5
    z = rows.double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    pairs = list(itertools.permutations(range(30), 2))
    found = health.signals(rows)
    assert found["health/std"] == pytest.approx(z.std(0).mean() * math.sqrt(6), rel=1e-5)
    assert found["health/mean_cosine"] == pytest.approx(np.mean([z[i] @ z[j] for i, j in pairs]), abs=1e-6)
    potential = np.mean([math.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i, j in pairs])
    assert found["health/uniformity"] == pytest.approx(math.log(potential), abs=1e-5)


def test_signals_at_the_extremes() -> None:
    uniform = health.signals(normal(2000, 64))
    assert uniform["health/std"] == pytest.approx(1, abs=0.02)
    assert uniform["health/mean_cosine"] == pytest.approx(0, abs=0.01)
    assert uniform["health/uniformity"] == pytest.approx(-4, abs=0.2)
    assert uniform["health/rank_share"] > 0.9
    collapsed = health.signals(torch.ones(100, 64) + 1e-4 * normal(100, 64))
    assert collapsed["health/std"] < 1e-3
    assert collapsed["health/mean_cosine"] > 0.9999
    assert collapsed["health/uniformity"] == pytest.approx(0, abs=1e-3)
    line = health.signals(normal(100, 1) @ normal(1, 64, seed=1))
    assert line["health/rankme"] == pytest.approx(1, abs=1e-2)
    assert line["health/std"] > 0.5  # not a collapse to one point


def test_signals_use_a_bounded_evenly_spaced_part() -> None:
    rows = normal(3 * health.SAMPLES, 4)
    assert health.signals(rows) == health.signals(rows[::3])


def test_signals_need_two_rows() -> None:
    with pytest.raises(InputError, match="N ≥ 2"):
        health.signals(torch.ones(1, 4))


def test_alignment() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [5.0, 0.0]])
    assert health.alignment(a, a) == 0
    assert health.alignment(a, b) == pytest.approx((0 + 2) / 2)


def test_a_healthy_run_has_no_findings() -> None:
    assert health.diagnose(HEALTHY) == []
    assert health.diagnose({}) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"health/std": 0.01}, "collapsed"),
        ({"health/rankme": 4.0, "health/rank_share": 0.016}, "dimensional collapse"),
        ({"health/rankme": 1.5, "health/rank_share": 0.2}, "dimensional collapse"),
        ({"health/training_std": 0.05}, "collapsed in training"),
        ({"health/teacher_entropy": 0.99}, "teacher target is flat"),
        ({"health/teacher_entropy": 0.001}, "teacher target is one-hot"),
        ({"eval/untrained_knn_top1": 80.2}, "no gain"),
        ({"eval/pixels_knn_top1": 90.0}, "no gain"),
        ({"train/loss": math.nan}, "diverged"),
    ],
)
def test_each_finding_has_its_sentence(changes: dict[str, float], finding: str) -> None:
    (sentence,) = health.diagnose(HEALTHY | changes)
    assert sentence.startswith(f"{finding}: ")
    assert sentence.endswith(".")


def test_a_collapse_is_said_once_and_names_its_value() -> None:
    (sentence,) = health.diagnose({"health/std": 0.01, "health/rankme": 1.0, "health/rank_share": 0.004})
    assert "0.010" in sentence


def test_a_low_spread_in_training_is_no_collapse_where_features_live_unless_the_target_is_flat() -> None:
    low, live = {"health/training_std": 0.2}, {"health/std": 0.6}
    assert health.diagnose(low) != []
    assert health.diagnose(low | live) == []
    assert health.diagnose({"health/training_std": 0.1} | live) != []
    assert len(health.diagnose(low | live | {"health/teacher_entropy": 0.98})) == 2


def test_copies_are_counted_and_points_of_a_plane_are_none() -> None:
    rows = normal(100, 32)
    found = health.signals(torch.cat([rows, rows[:80]]))
    assert found["health/duplicate_share"] == pytest.approx(160 / 180)
    (said,) = health.diagnose(found)
    assert said.startswith("duplicates: 89%")
    assert health.signals(normal(2000, 2))["health/duplicate_share"] < 0.05
    dead = torch.cat([rows, torch.full((100, 8), 3.0)], 1)
    assert health.signals(dead)["health/dead_dimensions"] == pytest.approx(0.2)


def test_a_two_dimensional_embedding_is_no_dimensional_collapse() -> None:
    assert health.diagnose(health.signals(normal(200, 2))) == []


def test_diagnosis_of_measured_signals() -> None:
    assert health.diagnose(health.signals(normal(500, 64))) == []
    (point,) = health.diagnose(health.signals(torch.ones(100, 64) + 1e-3 * normal(100, 64)))
    (line,) = health.diagnose(health.signals(normal(100, 1) @ normal(1, 64, seed=1)))
    assert point.startswith("collapsed")
    assert line.startswith("dimensional collapse")


def test_training_and_evaluation_are_kept_apart() -> None:
    step = {"train/loss": 5.0, "health/std": 0.04, "health/teacher_entropy": 0.8}
    found = health.combined({"health/std": 0.6, "eval/knn_top1": 80.0}, step)
    assert found == {
        "health/std": 0.6,
        "eval/knn_top1": 80.0,
        "health/training_std": 0.04,
        "health/teacher_entropy": 0.8,
    }
    (sentence,) = health.diagnose(found)
    assert sentence.startswith("collapsed in training: ")
