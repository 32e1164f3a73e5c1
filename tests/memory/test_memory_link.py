"""A rank's link to memory: what step t reads, for memories that answer and for those that do not."""

import pytest
import torch

from raysurl.memory import Queue
from raysurl.memory.link import MemoryLink
from raysurl.memory.record import LocalRecord
from raysurl.method import Progress


class Telling(Queue):
    """A queue that also tells each sample how many updates it has seen, and for which step it was asked."""

    answers = True

    def __init__(self):
        super().__init__(6, 2)
        self.updates = 0

    def push(self, keys, index=None):
        super().push(keys, index)
        self.updates += 1

    def answer(self, index, step):
        return {
            "seen": torch.full((len(index),), self.updates),
            "step": torch.full((len(index),), step),
            "of": index,
        }

    def refresh(self, features, progress):
        self.updates = 1000 + len(features)

    def state_dict(self):
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.updates = state.get("updates", self.updates)


def plan(step):
    return torch.arange(4) + 10 * step


def link_of(kind, staleness):
    memory = kind()
    record = LocalRecord(memory) if memory.answers else None
    return MemoryLink(
        memory, memory.mirror(torch.device("cpu")), record=record, staleness=staleness, plan=plan
    )


def a_queue():
    return Queue(6, 2)


def push(link, t):
    link.push(torch.full((4, 2), float(t)), plan(t))


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("kind", [a_queue, Telling])
def test_step_t_reads_the_mirror_as_it_was_after_update_t_minus_1_minus_s(kind, staleness):
    link, reference, history = link_of(kind, staleness), Queue(6, 2), []
    link.begin()
    for t in range(5):
        history.append(reference.features.clone())  # after t updates
        expected = history[max(t - staleness, 0)]
        assert torch.equal(link.snapshot(slice(0, 4))["features"], expected)
        push(link, t)
        reference.push(torch.full((4, 2), float(t)), plan(t))


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_answer_for_step_t_is_of_its_own_batch_and_as_stale_as_the_mirror(staleness):
    link = link_of(Telling, staleness)
    link.begin()
    for t in range(6):
        snapshot = link.snapshot(slice(1, 3))
        assert snapshot["of"].tolist() == plan(t)[1:3].tolist()
        assert snapshot["step"].tolist() == [t, t]
        assert snapshot["seen"].tolist() == [max(t - staleness, 0)] * 2
        push(link, t)


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("kind", [a_queue, Telling])
def test_restored_from_its_state_it_goes_on_as_if_nothing_had_happened(kind, staleness):
    link, copy = link_of(kind, staleness), link_of(kind, staleness)
    link.begin()
    for t in range(3):
        link.snapshot(slice(0, 4))
        push(link, t)
    link.drain()
    copy.load_state_dict(link.state_dict())
    for t in range(3, 7):
        ours, theirs = copy.snapshot(slice(0, 4)), link.snapshot(slice(0, 4))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        push(link, t)
        push(copy, t)
    link.drain()
    copy.drain()
    assert torch.equal(link.state_dict()["record"]["features"], copy.state_dict()["record"]["features"])


@pytest.mark.parametrize("staleness", [0, 1])
def test_after_a_refresh_the_coming_steps_read_what_it_made(staleness):
    link = link_of(Telling, staleness)
    link.begin()
    for t in range(2):
        link.snapshot(slice(0, 4))
        push(link, t)
    link.refresh(torch.zeros(5, 2), torch.tensor([True] * 5 + [False] * 2), Progress(0, 8, 4))
    for t in range(2, 2 + 1 + staleness):
        snapshot = link.snapshot(slice(0, 4))
        assert (snapshot["step"][0], snapshot["seen"][0]) == (t, 1007)
        push(link, t)
