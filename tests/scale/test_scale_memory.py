"""The memory actor's protocol: nothing is applied twice, skipped, or accepted from a replaced worker group."""

import os
import signal
import time

import numpy as np
import pytest
import torch

pytest.importorskip("ray")


from raysurl.memory import Queue
from raysurl.memory.link import MemoryLink
from raysurl.scale import memory, record
from raysurl.scale.record import ActorRecord, MemoryLostError

pytestmark = pytest.mark.slow


@pytest.fixture
def actor(ray_session):
    import ray

    actor = memory.create(lambda: Queue(6, 2, seed=3))
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def living(ray_session):
    """One that no test kills: each begins with a generation of its own, as a worker group does."""
    import ray

    actor = memory.create(lambda: Queue(6, 2, seed=3))
    yield actor
    ray.kill(actor)


def keys(value):
    return torch.full((2, 2), float(value)), torch.arange(2)


def test_the_actors_queue_is_the_plain_queue(living):
    record, plain = ActorRecord(living, timeout_s=60), Queue(6, 2, seed=3)
    record.restore(0, plain.state_dict())
    for t in range(1, 6):
        record.push(t, *keys(t))
        plain.push(*keys(t))
    state = record.state(5)
    assert torch.equal(state["features"], plain.features)
    assert torch.equal(state["index"], plain.index)
    assert state["pointer"] == plain.pointer


def test_a_repeated_update_is_a_no_op_and_a_gap_is_refused(living):
    record = ActorRecord(living, timeout_s=60)
    record.restore(0, Queue(6, 2).state_dict())
    record.push(1, *keys(1))
    record.push(1, *keys(1))
    assert record.state(1)["pointer"] == 2
    record.push(3, *keys(3))
    with pytest.raises(MemoryLostError, match="update 3 does not follow 1"):
        record.state(3)


def test_an_older_generation_is_refused_and_a_new_one_starts_empty(living):
    first = ActorRecord(living, timeout_s=60)
    first.restore(0, Queue(6, 2).state_dict())
    second = ActorRecord(living, timeout_s=60)
    with pytest.raises(MemoryLostError, match="holds nothing until"):
        second.state(0)
    second.restore(7, Queue(6, 2).state_dict())
    with pytest.raises(MemoryLostError, match="generation"):
        first.state(7)
    with pytest.raises(MemoryLostError, match="generation"):
        first.restore(0, Queue(6, 2).state_dict())


def link_to(actor):
    queue = Queue(6, 2, seed=3)
    mirror = queue.mirror(torch.device("cpu"))
    record = ActorRecord(actor, timeout_s=60)
    return MemoryLink(queue, mirror, record=record, staleness=0, plan=lambda step: torch.arange(2))


def kill_process(actor):
    import ray

    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def test_updates_are_replayed_into_a_killed_actors_next_life(actor):
    undisturbed, link = Queue(6, 2, seed=3), link_to(actor)
    link.begin()
    for t in range(1, 12):
        undisturbed.push(*keys(t))
        link.push(*keys(t))
        if t == 5:
            link.state_dict()  # the replay begins here, not at the first update
        if t in (3, 8, 11):
            kill_process(actor)
    held = link.state_dict()["record"]
    assert torch.equal(held["features"], undisturbed.features)
    assert torch.equal(held["index"], undisturbed.index)


class Looked(Queue):
    """Signals count from one look to the next."""

    looks = 0

    def health(self, labels):
        self.looks += 1
        filled = float((self.index >= 0).sum())
        of_labels = {} if labels is None else {"health/labels": float(labels.sum())}
        return {"health/looks": float(self.looks), "health/filled": filled} | of_labels


def test_looks_at_memory_are_of_the_last_update_are_replayed_too_and_move_no_base(ray_session):
    import ray

    actor = memory.create(lambda: Looked(6, 2))
    handle = ActorRecord(actor, timeout_s=60)
    handle.restore(0, None)
    base = handle._base
    handle.push(1, *keys(1))
    assert handle.health(np.arange(4)) == {"health/looks": 1.0, "health/filled": 2.0, "health/labels": 6.0}
    handle.push(2, *keys(2))
    handle.health(None)
    assert handle._base is base
    kill_process(actor)
    assert handle.health(None) == {"health/looks": 3.0, "health/filled": 4.0}
    assert handle.state(2)["features"].max() == 2
    ray.kill(actor)


def test_the_state_is_taken_anew_before_a_replay_grows_too_long(actor, monkeypatch):
    monkeypatch.setattr(record, "REPLAY_BYTES", 64)
    link = link_to(actor)
    link.begin()
    for t in range(1, 30):
        link.push(*keys(t))
        assert len(link.record._since) <= 6
    kill_process(actor)
    assert link.state_dict()["record"]["features"].max() == 29


def test_a_replaced_group_does_not_bring_its_memory_back(living):
    old = link_to(living)
    old.begin()
    old.push(*keys(1))
    new = ActorRecord(living, timeout_s=60)  # its group has not restored yet
    with pytest.raises(MemoryLostError, match="generation"):
        old.state_dict()
    new.restore(0, Queue(6, 2).state_dict())


def test_an_actor_that_is_gone_for_good_sends_the_group_back(actor):
    import ray

    link = link_to(actor)
    link.begin()
    link.record._timeout_s = 2
    ray.kill(actor)

    def push_on():
        for t in range(1, 100):
            link.push(*keys(t))
            time.sleep(0.05)

    with pytest.raises(MemoryLostError, match="did not come back"):
        push_on()
