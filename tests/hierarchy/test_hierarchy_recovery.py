"""The online hierarchy finds planted trees again, and says so where its thresholds cannot."""

import sys

import numpy as np
import pytest
from places import ROOT

sys.path.append(str(ROOT / "pipelines"))
from benchmarks.recovery import DEFAULT, Shape, recover

EASY, NOISY = Shape(0.65, 0.6, 64), Shape(0.60, 1.5, 128)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [EASY, NOISY], ids=str)
def test_planted_trees_are_found_again_at_the_default_thresholds(shape):
    """Goal: from an ARI of about .37 on both levels to at least .70, with drifting features."""
    run = recover(shape, DEFAULT, seed=0, epochs=5)
    start, end = run["ari"][0], run["ari"][-1]
    assert np.allclose(start, 0.37, atol=0.04)
    assert min(end) >= 0.70
    assert run["says"] == []


@pytest.mark.slow
def test_thresholds_that_are_too_high_are_reported_as_fragmentation():
    (sentence,) = recover(Shape(0.60, 2.0, 256), (0.99, 0.98), seed=0, epochs=2)["says"]
    assert sentence.startswith("fragmented: hierarchy level2")


@pytest.mark.slow
def test_thresholds_that_are_too_low_are_reported_as_a_giant_cluster():
    """Features with a large part in common are close to each other everywhere: cosines start at .8."""
    says = recover(Shape(0.65, 0.6, 64, shared=2.0), DEFAULT, seed=0, epochs=2)["says"]
    assert any(s.startswith("giant cluster") and "level3" in s for s in says)
