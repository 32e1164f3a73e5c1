"""What the benchmark of RCL's levels counts, on a queue that can be counted by hand."""

import sys

import numpy as np
import pytest
from places import ROOT

sys.path.append(str(ROOT / "pipelines"))
from benchmarks.levels import judged, table


def test_keys_are_judged_by_the_labels_of_their_samples():
    labels = np.array([0, 0, 1, 1, 2])
    queue = np.array([4, 1, 2, -1])  # samples 4, 1 and 2; the last slot is empty
    slots = np.array([[[-1, 1, 0]], [[-1, 2, 2]], [[-1, -1, 1]]])  # (B, V, J) of samples 0, 3 and 2
    found = judged(slots, queue, labels, np.array([0, 3, 2]))
    assert found["agree"] == pytest.approx([2 / 2, 1 / 3])
    assert found["retrieved"] == pytest.approx([2 / 3, 1])
    assert found["masked"] == pytest.approx((2 + 1 + 1) / 3)
    assert found["false"] == pytest.approx(3 / 9)  # one entry of each query's class among three


def test_a_gain_is_over_the_run_of_the_same_seed_and_length():
    def row(levels, start, epochs, seed, knn):
        return {"levels": levels, "start": start, "epochs": epochs, "seed": seed, "knn": knn}

    found = [row(1, None, e, s, 50 + e + 10 * s) for e in (5, 20) for s in (0, 1)]
    found += [row(3, 0.6, e, s, 50 + e + 10 * s + 1 + s) for e in (5, 20) for s in (0, 1)]
    lines = [line for line in table(found) if "60%" in line]
    assert len(lines) == 2
    assert all("| +1.5 ± 0.7 |" in line for line in lines)
