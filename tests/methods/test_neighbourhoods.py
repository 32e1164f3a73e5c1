"""Discovery of neighbourhoods against a slow reference, and the memory that tells a step of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl.errors import InputError
from raysurl.memory import Bank
from raysurl.memory.link import MemoryLink
from raysurl.memory.record import LocalRecord
from raysurl.method import Progress
from raysurl.methods.superand.memory import CONSISTENCY, INSTANCE, NeighbourBank, discover


def slow_discover(memory, tau, count, num_neighbours):
    """With the whole N×N matrix, in float64."""
    similarity = memory.double() @ memory.double().T
    p = F.softmax(similarity / tau, dim=1)
    entropy = torch.special.entr(p).sum(dim=1)
    nearest = similarity.fill_diagonal_(-np.inf).argsort(dim=1, descending=True)[:, :num_neighbours]
    return entropy, nearest, entropy.argsort()[:count]


@settings(max_examples=40)
@given(
    n=st.integers(2, 70),
    dim=st.integers(1, 9),
    rows=st.integers(1, 80),
    columns=st.integers(1, 80),
    tau=st.sampled_from([0.07, 0.1, 1.0]),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_discovery_in_blocks_is_the_plain_one(n, dim, rows, columns, tau, share, data):
    neighbours = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    memory = torch.randn(n, dim, generator=generator) * torch.rand(n, 1, generator=generator)
    anchors, found = discover(
        memory, tau=tau, fraction=share, num_neighbours=neighbours, block=(rows, columns)
    )
    entropy, nearest, expected = slow_discover(memory, tau, len(anchors), neighbours)
    assert len(anchors) == int(n * share + 1e-6)
    torch.testing.assert_close(
        entropy[anchors], entropy[expected], rtol=1e-4, atol=1e-5
    )  # near ties may swap
    similarity = memory @ memory.T
    torch.testing.assert_close(
        similarity[anchors].gather(1, found), similarity[anchors].gather(1, nearest[anchors])
    )
    assert (found != anchors[:, None]).all()
    assert all(len(set(row)) == neighbours for row in found.tolist())


def test_discovery_of_identical_rows_is_defined_and_bad_input_is_refused():
    anchors, found = discover(torch.ones(6, 3) / 3**0.5, tau=0.1, fraction=1.0, num_neighbours=2)
    assert sorted(anchors.tolist()) == list(range(6))
    assert (found != anchors[:, None]).all()
    assert ((found >= 0) & (found < 6)).all()
    given = {"tau": 0.1, "fraction": 0.5, "num_neighbours": 2}
    with pytest.raises(InputError, match=r"num_neighbours=2 must be between 1 and 1"):
        discover(torch.ones(2, 3), **given)
    with pytest.raises(InputError, match="finite"):
        discover(torch.full((6, 3), torch.nan), **given)
    with pytest.raises(InputError, match="fraction"):
        discover(torch.ones(6, 3), **{**given, "fraction": 1.5})


def test_sparse_neighbourhoods_come_first_and_planted_pairs_are_each_others_neighbours():
    generator = torch.Generator().manual_seed(0)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    rows = torch.cat([centres[:7].repeat_interleave(2, dim=0), centres[7:9]])  # the last two have no one near
    rows = F.normalize(rows + 0.02 * torch.randn(16, 16, generator=generator))
    alone, _ = discover(rows, tau=0.1, fraction=0.125, num_neighbours=1)
    assert sorted(alone.tolist()) == [14, 15]
    rows = rows[:14]
    anchors, neighbours = discover(rows, tau=0.1, fraction=0.3, num_neighbours=1)
    assert len(anchors) == 4
    assert torch.equal(neighbours[:, 0], anchors ^ 1)
    memory = NeighbourBank(
        Bank(14, 16, momentum=0.5, tau=0.1), num_neighbours=1, fraction=lambda p: 0.3, from_features=True
    )
    assert memory.health(np.arange(14)) == {}
    memory.refresh(rows, Progress(5, 10, 5))
    assert memory.health(None) == {}
    assert memory.health(np.arange(14) // 2) == {CONSISTENCY: 1.0}
    assert memory.health(np.arange(14)) == {CONSISTENCY: 0.0}
    unknown = np.full(14, -1)
    unknown[anchors[0]] = 3
    assert memory.health(unknown) == {}


def test_samples_that_no_step_has_had_are_left_out_of_discovery():
    bank = Bank(12, 6, momentum=0.0, tau=0.1)
    memory = NeighbourBank(bank, num_neighbours=2, fraction=lambda p: 1.0, from_features=False)
    had = torch.tensor([1, 2, 5, 7, 11])
    memory.push(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), had)
    memory.refresh(None, Progress(5, 10, 5))
    assert torch.nonzero(memory.neighbours[:, 0] != INSTANCE)[:, 0].tolist() == had.tolist()
    assert set(memory.neighbours[had].flatten().tolist()) <= set(had.tolist())


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_link_asks_the_record_for_health_without_disturbing_the_steps(staleness):
    plan = lambda step: (torch.arange(4) + step) % 8  # noqa: E731

    def link_of():
        bank = Bank(8, 3, momentum=0.5, tau=0.1, seed=1)
        memory = NeighbourBank(bank, num_neighbours=1, fraction=lambda p: 0.5, from_features=False)
        mirror = memory.mirror(torch.device("cpu"))
        return MemoryLink(memory, mirror, record=LocalRecord(memory), staleness=staleness, plan=plan)

    asked, left_alone = link_of(), link_of()
    for link in (asked, left_alone):
        link.begin()
        link.refresh(None, torch.ones(8, dtype=torch.bool), Progress(0, 10, 5))
    for t in range(4):
        ours, theirs = asked.snapshot(slice(0, 4)), left_alone.snapshot(slice(0, 4))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for link in (asked, left_alone):
            link.push(torch.randn(4, 3, generator=torch.Generator().manual_seed(t)), plan(t))
        assert asked.health(np.zeros(8, np.int64)) == {CONSISTENCY: 1.0}
