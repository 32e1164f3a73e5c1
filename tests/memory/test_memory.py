"""Queue and bank."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import load
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl.errors import InputError
from raysurl.memory import Bank, Queue


@settings(max_examples=60)
@given(size=st.integers(1, 9), pushes=st.lists(st.integers(0, 14), max_size=8))
def test_queue_holds_the_last_k_keys_whatever_the_batch_sizes(size, pushes):
    queue, pushed = Queue(size, 2, seed=1), []
    for count in pushes:
        start = len(pushed)
        rows = [[float(start + i), 1.0] for i in range(count)]
        queue.push(torch.tensor(rows).reshape(-1, 2), torch.arange(start, start + count))
        pushed += rows
    expected = {tuple(row) for row in pushed[-size:]}
    filled = queue.index >= 0
    assert {tuple(row) for row in queue.features[filled].tolist()} == expected
    assert set(queue.index[filled].tolist()) == set(range(max(len(pushed) - size, 0), len(pushed)))
    assert queue.pointer == len(pushed) % size
    assert queue.features[~filled].norm(dim=1).allclose(torch.ones(int((~filled).sum())))


def test_queue_overwrites_the_oldest_first():
    queue = Queue(4, 1)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    queue.push(torch.tensor([[4.0], [5.0]]))
    assert queue.features.flatten().tolist() == [5.0, 2.0, 3.0, 4.0]
    assert queue.index.tolist() == [-1, -1, -1, -1]


def test_queue_starts_from_its_seed_and_refuses_other_widths():
    assert torch.equal(Queue(8, 3, seed=4).features, Queue(8, 3, seed=4).features)
    assert not torch.equal(Queue(8, 3, seed=4).features, Queue(8, 3, seed=5).features)
    with pytest.raises(InputError, match="dimension 3"):
        Queue(8, 3).push(torch.zeros(2, 4))
    with pytest.raises(InputError, match="stored queue"):
        Queue(8, 3).load_state_dict(Queue(9, 3).state_dict())


def test_a_state_is_not_changed_by_later_pushes():
    queue = Queue(4, 2)
    state = queue.state_dict()
    before = state["features"].clone()
    queue.push(torch.ones(2, 2))
    assert torch.equal(state["features"], before)


def test_bank_is_the_authors():
    g = load("superand_npc")
    bank = Bank(40, 16, momentum=0.5, tau=0.1)
    bank.features = torch.tensor(g["memory_before"])
    v = torch.tensor(g["features"], requires_grad=True)
    logits = bank.logits(v)
    logits.backward(torch.tensor(g["grad_outputs"]))
    np.testing.assert_allclose(logits.detach(), g["outputs"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(v.grad, g["grad_features"], rtol=1e-4, atol=1e-5)
    bank.update(torch.tensor(g["indexes"]).repeat(2), v.detach())
    np.testing.assert_allclose(bank.features, g["memory_after"], rtol=1e-4, atol=1e-5)


def test_bank_of_a_repeated_index_keeps_the_last_row():
    bank = Bank(3, 2, momentum=0.5, tau=1.0)
    before = bank.features.clone()
    bank.update(torch.tensor([1, 1]), torch.tensor([[9.0, 9.0], [1.0, 0.0]]))
    expected = F.normalize(0.5 * before[1] + 0.5 * torch.tensor([1.0, 0.0]), dim=0)
    torch.testing.assert_close(bank.features[1], expected)
    assert torch.equal(bank.features[[0, 2]], before[[0, 2]])
    with pytest.raises(InputError, match="outside the bank"):
        bank.update(torch.tensor([3]), torch.zeros(1, 2))
