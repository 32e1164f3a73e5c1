"""Parts of the data that stand for all of it, whatever order the samples come in."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysurl.evaluate.division import HELD_OUT, divide, embedding_points, some

ORDERS = {
    "in turns": lambda labels, rng: np.arange(len(labels)) % (labels.max() + 1),
    "one after the other": lambda labels, rng: np.sort(labels),
    "mixed": lambda labels, rng: rng.permutation(labels),
}
orders = st.sampled_from(sorted(ORDERS))


@given(orders, st.integers(1, 25), st.integers(2, 400), st.integers(0, 99), st.booleans())
def test_without_a_test_set_each_class_gives_a_tenth(order, classes, count, seed, some_unknown):
    rng = np.random.default_rng(seed)
    labels = ORDERS[order](rng.integers(0, classes, count), rng).astype(np.int64)
    if some_unknown:
        labels[rng.random(count) < 0.2] = -1
    usable = np.flatnonzero(rng.random(count) < 0.9) if seed % 2 else np.arange(count)
    known = usable[labels[usable] >= 0]
    found = divide(labels, usable)
    counts = np.bincount(labels[known], minlength=1)
    several = int(counts[counts > 1].sum())
    if not len(found.test):
        assert len(known) < 3 or not several
        return
    assert "every tenth labelled sample of a class" in found.note
    assert ("all labels are of one class" in found.note) == (np.count_nonzero(counts) == 1)
    assert set(labels[found.test]) <= set(labels[found.bank])
    assert np.array_equal(np.sort(np.concatenate([found.bank, found.test])), known)
    assert np.array_equal(found.test, np.unique(found.test))
    assert len(found.test) == -(-several // HELD_OUT)
    share = counts / HELD_OUT
    assert (np.abs(np.bincount(labels[found.test], minlength=len(share)) - share) < 1).all()


@pytest.mark.parametrize("period", [2, 5, 10, 12])
@pytest.mark.parametrize(
    "draw", [embedding_points, lambda n, limit: some(n, limit, 0, "online bank")], ids=["points", "bank"]
)
def test_a_part_has_its_share_of_classes_that_come_in_turns(draw, period):
    chosen = draw(period * 1000, 1000)
    assert torch.equal(chosen, draw(period * 1000, 1000))
    assert torch.equal(chosen, chosen.unique())
    shares = torch.bincount(chosen % period, minlength=period) / 1000
    assert shares.sub(1 / period).abs().max() < 5 * (1 / period / 1000) ** 0.5
    assert torch.equal(draw(7, 1000), torch.arange(7))
