import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl.errors import InputError
from raysurl.sampler import beside_neighbours, epoch_order, plan
from raysurl.streams import FirstSeed

SEEDS = st.integers(0, 2**63 - 1)


@given(n=st.integers(1, 300), seed=SEEDS, epoch=st.integers(0, 1000), window=st.none() | st.integers(1, 400))
def test_an_epoch_holds_every_readable_sample_once(n: int, seed: int, epoch: int, window: int | None) -> None:
    readable = np.random.default_rng(n).random(n) < 0.8
    order = epoch_order(readable, seed, epoch, window)
    assert sorted(order.tolist()) == np.flatnonzero(readable).tolist()
    assert order.dtype == np.int64
    assert (order == epoch_order(readable, seed, epoch, window)).all()


@given(n=st.integers(2, 300), seed=SEEDS, epoch=st.integers(0, 50), window=st.integers(1, 100))
def test_windows_are_contiguous_and_stay_together(n: int, seed: int, epoch: int, window: int) -> None:
    blocks = epoch_order(n, seed, epoch, window) // window
    changes = np.flatnonzero(np.diff(blocks)) + 1
    seen = [set(part.tolist()) for part in np.split(blocks, changes)]
    assert all(len(part) == 1 for part in seen)
    assert len(seen) == -(-n // window)


def test_orders_differ_between_epochs_and_seeds_and_are_well_mixed() -> None:
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 20  # about one agreement is expected of independent orders
    assert abs(np.corrcoef(np.arange(1000), orders[0])[0, 1]) < 0.15


def test_an_order_is_the_same_for_ever() -> None:
    """A changed order would silently break the resume of every run on disk."""
    assert epoch_order(10, 3, 2).tolist() == [5, 4, 3, 2, 8, 7, 0, 9, 1, 6]
    assert epoch_order(10, FirstSeed(3), 2).tolist() == [9, 5, 3, 1, 8, 2, 7, 0, 4, 6]


@settings(max_examples=60)
@given(
    part=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    world_size=st.integers(1, 4),
    extra=st.integers(0, 40),
    seed=SEEDS,
    window=st.none() | st.integers(1, 60),
)
def test_ranks_cover_the_global_batches_in_order_for_any_world_size(
    part: int, accumulate: int, world_size: int, extra: int, seed: int, window: int | None
) -> None:
    batch_size = part * accumulate * world_size
    p = plan(batch_size + extra, batch_size=batch_size, seed=seed, window=window)
    steps = 2 * p.steps_per_epoch + 1
    alone = list(p.requests(0, steps))
    by_rank = [
        list(p.requests(0, steps, rank=rank, world_size=world_size, accumulate=accumulate))
        for rank in range(world_size)
    ]
    for whole, (step, batch) in zip(alone, p.global_batches(0, steps), strict=True):
        assert whole.step == step
        assert (whole.index == batch).all()
        parts = [r for requests in by_rank for r in requests if r.step == step]
        assert len(parts) == accumulate * world_size
        joined = np.full(batch_size, -1)
        for request in parts:
            joined[request.start : request.start + len(request.index)] = request.index
        assert (joined == batch).all()
        assert len(set(batch.tolist())) == batch_size


def test_micro_batches_of_a_step_are_joined_rank_by_rank() -> None:
    p = plan(12, batch_size=12, seed=0)
    starts = {
        rank: [r.start for r in p.requests(0, 1, rank=rank, world_size=2, accumulate=3)] for rank in (0, 1)
    }
    assert starts == {0: [0, 4, 8], 1: [2, 6, 10]}


def test_starting_in_the_middle_continues_the_same_plan() -> None:
    p = plan(50, batch_size=8, seed=1, window=20)
    whole = [r.index.tolist() for r in p.requests(0, 20)]
    assert [r.index.tolist() for r in p.requests(7, 20)] == whole[7:]


def test_the_tail_left_out_differs_by_epoch() -> None:
    p = plan(50, batch_size=8, seed=0)
    assert p.left_out == 2
    tails = {frozenset(p.order(epoch)[48:].tolist()) for epoch in range(5)}
    assert len(tails) > 1


def test_neighbours_stand_together_and_nothing_is_repeated() -> None:
    n = 60
    graph = np.stack([np.arange(n) ^ 1, np.full(n, -1)], axis=1)  # samples 2i and 2i+1 are neighbours
    p = plan(n, batch_size=10, seed=0, graph=graph)
    order = p.order(0)
    assert sorted(order.tolist()) == list(range(n))
    assert (order[0::2] ^ 1 == order[1::2]).all()
    readable = np.arange(0, n, 2)
    assert sorted(beside_neighbours(readable, graph).tolist()) == readable.tolist()


def test_bad_plans_are_refused() -> None:
    with pytest.raises(InputError, match="5 readable samples"):
        plan(5, batch_size=8, seed=0)
    with pytest.raises(InputError, match="multiple"):
        list(plan(9, batch_size=9, seed=0).requests(0, 1, world_size=2))
