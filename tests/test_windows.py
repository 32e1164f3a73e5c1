"""The order of samples that are read in groups."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl.sampler import plan
from raysurl.windows import Windows, classes_in_a_shuffle, classes_in_batches, order_in_windows, reads_of

SEEDS = st.integers(0, 2**63 - 1)
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def groups(lengths):
    return np.repeat(np.arange(len(lengths)), lengths)


@given(
    LENGTHS, SEEDS, st.integers(0, 50), st.integers(1, 200), st.integers(1, 40), st.none() | st.integers(1, 3)
)
def test_an_epoch_holds_every_sample_once_in_windows_of_whole_batches(
    lengths, seed, epoch, size, batch_size, reads
):
    group = groups(lengths)
    readable = np.flatnonzero(np.random.default_rng(len(group)).random(len(group)) < 0.8)
    if len(readable) < batch_size:
        return
    windows = Windows(group, size, reads)
    order, seams = order_in_windows(readable, windows, batch_size, seed, epoch)
    assert sorted(order.tolist()) == readable.tolist()
    assert (order == order_in_windows(readable, windows, batch_size, seed, epoch)[0]).all()
    assert (seams[0], seams[-1]) == (0, len(readable))
    assert (np.diff(seams) >= batch_size).all() or len(seams) == 2
    assert (seams[:-1] % batch_size == 0).all()


@given(st.integers(1, 12), st.integers(2, 60), SEEDS, st.integers(12, 80), st.integers(1, 40))
def test_a_window_is_no_larger_than_asked_and_a_group_is_read_again_at_a_seam_alone(
    length, count, seed, size, batch_size
):
    group = groups([length] * count)
    if len(group) < batch_size:
        return
    order, seams = order_in_windows(np.arange(len(group)), Windows(group, size, 1), batch_size, seed, 0)
    assert np.diff(seams).max() < size + 2 * batch_size  # the last one has the tail that is left out, too
    held = [set(group[order[a:b]].tolist()) for a, b in itertools.pairwise(seams)]
    again = sum(map(len, held)) - count
    assert again <= len(held) - 1
    for one, other in itertools.pairwise(held):
        assert len(one & other) <= 1


def test_a_group_larger_than_a_window_is_cut_at_random_and_parts_may_be_asked_for():
    group = groups([1000, 10, 10])
    order, seams = order_in_windows(np.arange(1020), Windows(group, 100), 20, 0, 0)
    assert np.diff(seams).max() <= 120
    first = np.sort(order[: seams[1]])
    assert first.max() - first.min() > 500  # of the whole group, not of neighbours in it
    group = groups([10] * 100)
    windows = [Windows(group, 100, reads) for reads in (1, 5)]
    few, many = (order_in_windows(np.arange(1000), each, 10, 0, 0) for each in windows)
    assert len(set(group[few[0][: few[1][1]]].tolist())) in (10, 11)
    assert len(set(group[many[0][: many[1][1]]].tolist())) >= 45


def test_the_groups_of_a_window_are_spread_over_the_listing():
    order, seams = order_in_windows(np.arange(6000), Windows(groups([10] * 600), 300, 1), 10, 0, 0)
    for a, b in itertools.pairwise(seams):
        tenth = np.bincount(order[a:b] * 10 // 6000, minlength=10)
        assert tenth.min() >= 20  # of 30 expected
    assert len(seams) == 21


def test_a_group_is_read_as_often_as_batches_need_it_and_four_times_at_most():
    group = groups([100] * 400)
    for size, batch_size, reads in ((40_000, 1024, 4), (40_000, 400, 2), (40_000, 100, 1), (4000, 1024, 4)):
        assert reads_of(Windows(group, size), np.arange(len(group)), batch_size) == reads


def test_epochs_and_seeds_differ_and_an_order_is_the_same_for_ever():
    windows = Windows(groups([2] * 6), 4, 1)
    orders = {
        tuple(order_in_windows(np.arange(12), windows, 2, seed, e)[0]) for seed in (0, 1) for e in (0, 1)
    }
    assert len(orders) == 4
    # a changed order would silently break the resume of every run on disk
    assert order_in_windows(np.arange(12), windows, 2, 3, 2)[0].tolist() == [
        2,
        3,
        11,
        10,
        4,
        6,
        7,
        5,
        9,
        1,
        0,
        8,
    ]


def test_every_batch_asks_for_one_window_for_any_world_size_and_from_any_step():
    group = groups([7] * 40)
    p = plan(280, batch_size=12, seed=1, windows=Windows(group, 60))
    assert p.in_windows
    alone = list(p.requests(0, 60))
    for world_size in (1, 2):
        parts = [list(p.requests(0, 60, rank=r, world_size=world_size)) for r in range(world_size)]
        for whole, *ranks in zip(alone, *parts, strict=True):
            assert np.concatenate([r.index for r in ranks]).tolist() == whole.index.tolist()
            assert {r.window for r in ranks} == {whole.window}
    assert [r.window for r in p.requests(17, 60)] == [r.window for r in alone[17:]]
    numbers = [r.window for r in alone]
    assert numbers == sorted(numbers)
    assert max(numbers.count(n) for n in set(numbers)) <= 6
    assert len(set(numbers[: p.steps_per_epoch])) == 5


def test_what_a_window_can_hold_is_shuffled_as_if_it_were_in_memory():
    whole = plan(100, batch_size=10, seed=4)
    held = plan(100, batch_size=10, seed=4, windows=Windows(groups([10] * 10), 100))
    assert held.order(2).tolist() == whole.order(2).tolist()
    assert {r.window for r in held.requests(0, 20)} == {None}


def test_neighbours_of_a_graph_stand_together_in_windows_too():
    graph = np.stack([np.arange(60) ^ 1], axis=1)
    p = plan(60, batch_size=10, seed=0, graph=graph, windows=Windows(groups([6] * 10), 20))
    order = p.order(0)
    assert sorted(order.tolist()) == list(range(60))
    assert (order[0::2] ^ 1 == order[1::2]).all()
    assert {r.window for r in p.requests(0, 6)} == {None}


# -------------------------------------------------------------------- classes


@settings(max_examples=20)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 20), SEEDS)
def test_expected_classes_are_those_that_are_drawn(counts, batch_size, seed):
    labels = groups(counts)
    if len(labels) < batch_size:
        return
    random = np.random.default_rng(seed)
    drawn = np.mean([len(np.unique(random.permutation(labels)[:batch_size])) for _ in range(400)])
    expected = classes_in_a_shuffle(np.array(counts), len(labels), batch_size)
    assert expected == pytest.approx(drawn, abs=0.35)


def classes(counts, batch_size, size, length, reads=None):
    """Of a batch beside a full shuffle, both of samples sorted by class."""
    labels = groups(counts)
    windows = Windows(np.arange(len(labels)) // length, size, reads)
    order, _ = order_in_windows(np.arange(len(labels)), windows, batch_size, 0, 0)
    return classes_in_batches(order, labels, batch_size), classes_in_a_shuffle(
        counts, len(labels), batch_size
    )


@pytest.mark.parametrize(("length", "reads", "near"), [(25, 1, True), (100, None, True), (100, 1, False)])
def test_a_tenth_of_imagenet_sorted_by_class_is_mixed_where_memory_allows_it(length, reads, near):
    found, full = classes(np.full(100, 1281), 102, 3904, length, reads)
    assert (found > 0.95 * full) == near
    assert found > 0.5 * full


@pytest.mark.slow
def test_imagenet_sorted_by_class_is_mixed_where_four_gigabytes_can():
    """1,281,167 images of 110 kB in 1,000 classes, batches of 1,024."""
    counts = np.full(1000, 1281) + (np.arange(1000) < 167)
    for length in (25, 64, 100):
        found, full = classes(counts, 1024, 2**32 // 110_000, length)
        assert full == pytest.approx(641, abs=1)
        assert found > 0.95 * full
    found, _ = classes(counts, 1024, 2**32 // 110_000, 100, 1)
    assert found == pytest.approx(363, abs=12)  # of the 390 classes that a window's groups can be of
