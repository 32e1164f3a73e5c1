"""The online hierarchy: a forest that stays one under any updates, and clusters that come right."""

from itertools import pairwise

import hierarchies
import numpy as np
import pytest
from hierarchies import check_forest, feature_rows, layer_of, planted, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from raysurl.errors import InputError
from raysurl.hierarchy import Hierarchy
from raysurl.hierarchy.dbscan import nested_labels
from raysurl.hierarchy.selection import ranked
from raysurl.neighbours import knn_graph

D = 6


def small(number=24, *, seed=0, levels=3, **options):
    thresholds = {1: (), 2: (0.755,), 3: (0.755, 0.68), 4: (0.82, 0.755, 0.68)}[levels]
    return Hierarchy(number, D, levels=levels, merge_thresholds=thresholds, seed=seed, **options)


def begun(number=24, *, seed=0, levels=3, **options):
    """Random features under random nested labels."""
    random = np.random.default_rng(seed)
    h = small(number, seed=seed, levels=levels, **options)
    labels = [random.integers(0, max(number // 3, 1), number)]
    for _ in range(levels - 2):
        labels.append(labels[-1] % max(len(np.unique(labels[-1])) // 2, 1))
    h.begin(unit(random.normal(size=(number, D))), np.stack(labels[: levels - 1]) if levels > 1 else [])
    return h


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_a_ranked_value_is_that_of_the_sorted_ones(values, quantile):
    rank = int(quantile * (len(values) - 1))
    assert ranked(np.array(values, np.float32), rank) == np.float32(sorted(values)[rank])


batches = st.lists(
    st.tuples(st.integers(1, 24), st.integers(0, 2**31), st.sampled_from(["random", "tight", "same", "zero"])),
    min_size=1,
    max_size=12,
)  # fmt: skip


def features_of(kind, count, seed):
    random = np.random.default_rng(seed)
    if kind == "same":
        return np.tile(unit(random.normal(size=(1, D))), (count, 1))
    if kind == "zero":
        return np.zeros((count, D), np.float32)
    spread = 1.0 if kind == "random" else 0.05
    return unit(np.eye(D)[random.integers(0, 3, count)] + spread * random.normal(size=(count, D)))


@settings(max_examples=60)
@given(
    batches,
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["nearest", "label_propagation"]),
    st.booleans(),
    st.sampled_from([1, 3, 256]),
    st.sampled_from([2, 5, 256]),
)
def test_a_forest_stays_a_forest(updates, levels, mode, literal, max_clusters, max_units):
    options = {"relocate": False, "correct_noise": False, "prototypes": 2} if literal else {}
    h = begun(levels=levels, mode=mode, max_clusters=max_clusters, max_units=max_units, **options)
    check_forest(h)
    current = feature_rows(h)
    for count, seed, kind in updates:
        index = np.random.default_rng(seed).permutation(24)[:count]
        rows = features_of(kind, count, seed)
        assert h.update(index, rows)
        current[index] = rows
        check_forest(h)
        np.testing.assert_allclose(feature_rows(h), current, atol=1e-3)


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 5]), st.sampled_from([2, 3, 4]), st.booleans())
def test_no_touched_cluster_waits_longer_than_all_of_its_level_take(seed, most, levels, relocate):
    """With m clusters a step, none of C waits for more than ⌈C/m⌉ updates; each level waits for itself."""
    h = begun(60, seed=seed, levels=levels, max_clusters=most, relocate=relocate)
    random = np.random.default_rng(seed)
    bound = np.zeros(levels - 1)
    for _ in range(25):
        h.update(random.permutation(60)[:20], unit(random.normal(size=(20, D))))
        bound = np.maximum(bound, [-(-len(h.clusters(level)) // most) for level in range(2, levels + 1)])
        layers = [layer_of(h, layer) for layer in range(levels)]
        waits = [h.step - layer.since[layer.since > 0].min(initial=h.step) for layer in layers[1:]]
        assert (waits <= bound).all()
        assert (h.longest_wait <= bound).all()
        for below, own in pairwise(layers):  # what was hit is known to wait, and nothing else
            hit = np.flatnonzero(below.hit)
            assert (below.samples[hit] > 0).all()
            assert (own.since[below.parent[hit]] > 0).all()


def test_a_hit_unit_keeps_its_claim_until_its_cluster_is_reworked():
    """Whatever waits comes right in its turn: the hits of one batch are all worked off by empty-handed updates."""
    h, again = begun(60, levels=3, max_clusters=1), small(60, levels=3, max_clusters=1)
    random = np.random.default_rng(0)
    h.update(np.arange(60), unit(random.normal(size=(60, D))))
    assert h._layers.hit[0].any()
    again.load_state_dict(h.state_dict())  # what waits is part of the state
    for _ in range(100):
        h.update(np.zeros(0, int), np.zeros((0, D)))
        again.update(np.zeros(0, int), np.zeros((0, D)))
        assert (h.labels(np.arange(60)) == again.labels(np.arange(60))).all()
    assert not h._layers.hit.any()
    assert not h._layers.since[: h.levels].any()


def test_wrong_labels_come_right_in_two_epochs_however_large_the_batch():
    """1,000 clusters of 6 samples, 40 % of which begin elsewhere: all that a batch touches is reworked."""
    random, number, clusters = np.random.default_rng(0), 6000, 1000
    centres = unit(random.normal(size=(clusters, 64)))
    truth = random.permutation(np.arange(number) % clusters)
    wrong = random.random(number) < 0.4
    begins = np.where(wrong, random.integers(0, clusters, number), truth)

    def seen(index):
        return unit(centres[truth[index]] + 0.5 * unit(random.normal(size=(len(index), 64))))

    h = Hierarchy(number, 64, levels=2, merge_thresholds=(0.755,))
    h.begin(seen(np.arange(number)), begins[None])
    assert adjusted_rand_score(truth, begins) < 0.4
    for _ in range(2):
        for index in random.permutation(number).reshape(-1, 3000):
            h.update(index, seen(index))
    assert adjusted_rand_score(truth, h.labels(np.arange(number))[1]) > 0.99
    assert h.longest_wait[0] == 0


def test_the_order_and_the_seed_alone_decide():
    def run(seed):
        h, random = begun(60, seed=seed, max_clusters=4, max_units=3), np.random.default_rng(5)
        for _ in range(20):
            h.update(random.permutation(60)[:20], unit(random.normal(size=(20, D))))
        return h.labels(np.arange(60))

    assert (run(0) == run(0)).all()
    h, g = begun(60, max_units=3), begun(60, max_units=3)
    g.seed = 1  # the same start, other picks
    random = np.random.default_rng(5)
    for _ in range(20):
        batch = random.permutation(60)[:20], unit(random.normal(size=(20, D)))
        h.update(*batch)
        g.update(*batch)
    assert (h.labels(np.arange(60)) != g.labels(np.arange(60))).any()


def test_a_restored_hierarchy_goes_on_exactly():
    random = np.random.default_rng(1)
    first, second = begun(50), small(50)
    work = [(random.permutation(50)[:16], unit(random.normal(size=(16, D)))) for _ in range(14)]
    for batch in work[:7]:
        first.update(*batch)
    first.health()
    second.load_state_dict(first.state_dict())
    for batch in work[7:]:
        first.update(*batch)
        second.update(*batch)
    ours, theirs = hierarchies.flat(first.state_dict()), hierarchies.flat(second.state_dict())
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert first.health() == second.health()


def test_a_repeated_step_changes_nothing():
    h = begun()
    rows = unit(np.random.default_rng(2).normal(size=(5, D)))
    assert h.update(range(5), rows, step=7)
    before = hierarchies.flat(h.state_dict())
    assert not h.update(range(5), -rows, step=7)
    after = hierarchies.flat(h.state_dict())
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert h.update(range(5), rows, step=8)


def test_the_warm_start_is_density_clustering_made_nested():
    features, truth, _ = planted(number=300, middles=10, tops=3, dim=32, sibling=0.4, noise=0.3)
    h = Hierarchy(300, 32, seed=0)
    h.fit(features)
    check_forest(h)
    graph = knn_graph(features, 32)
    expected = nested_labels(graph, [np.sqrt(2 - 2 * 0.755), np.sqrt(2 - 2 * 0.68)])
    for mine, theirs in zip(h.labels(np.arange(300))[1:], expected, strict=True):
        assert adjusted_rand_score(mine, theirs) == 1
    assert adjusted_rand_score(h.labels(np.arange(300))[1], truth) > 0.8
    assert h.recall == 1


@pytest.mark.parametrize("mode", ["nearest", "label_propagation"])
def test_two_groups_in_one_cluster_are_split_and_one_group_in_two_is_united(mode):
    random, number = np.random.default_rng(0), 40
    truth = np.arange(number) // 20
    rows = unit(np.eye(D)[truth] + 0.1 * random.normal(size=(number, D)))
    joined = Hierarchy(number, D, levels=2, merge_thresholds=(0.755,), mode=mode)
    joined.begin(rows, np.zeros((1, number), int))
    joined.update(np.arange(number), rows)
    assert adjusted_rand_score(joined.labels(np.arange(number))[1], truth) == 1
    parted = Hierarchy(number, D, levels=2, merge_thresholds=(0.755,), mode=mode)
    parted.begin(rows, np.arange(number)[None] // 5)
    for _ in range(3):
        parted.update(np.arange(number), rows)
    assert adjusted_rand_score(parted.labels(np.arange(number))[1], truth) == 1


def test_nothing_crosses_a_parents_border():
    """Two clusters of one direction under parents that are far apart stay two, and never share a label."""
    random = np.random.default_rng(0)
    directions = np.eye(D)[[0, 1, 2, 1]]  # clusters 1 and 3 agree; parents are {0, 1} and {2, 3}
    middle = np.repeat(np.arange(4), 10)
    weight = np.where(middle % 2 == 0, 1.0, 1.0)
    rows = unit(directions[middle] * weight[:, None] + 0.05 * random.normal(size=(40, D)))
    h = Hierarchy(40, D, levels=3, merge_thresholds=(0.9, 0.8), seed=0)
    h.begin(rows, np.stack([middle, middle // 2]))
    hit = np.flatnonzero(middle == 1)
    layer_only = h.labels(np.arange(40))[2]
    h._rework(1, hit)  # level 2 alone
    labels = h.labels(np.arange(40))
    assert (labels[2] == layer_only).all()
    assert not set(labels[1][middle == 1]) & set(labels[1][middle == 3])


BAD = {
    "outside": (lambda h: h.update([24], np.ones((1, D))), "sample index 24 lies outside"),
    "negative": (lambda h: h.labels([-1]), "sample index -1 lies outside"),
    "repeated": (lambda h: h.update([1, 1], np.ones((2, D))), "repeated"),
    "nan": (lambda h: h.update([1], np.full((1, D), np.nan)), "not finite"),
    "width": (lambda h: h.update([1], np.ones((1, D + 1))), "do not fit"),
    "rows": (lambda h: h.update([1, 2], np.ones((1, D))), "2 sample indices came with 1"),
    "fit": (lambda h: h.fit(np.full((24, D), np.inf)), "not finite"),
    "number": (lambda h: h.fit(np.ones((23, D))), "do not fit"),
    "state": (lambda h: h.load_state_dict(begun(25).state_dict()), "25"),
    "nested": (lambda h: h.begin(np.ones((24, D)), [np.zeros(24), np.arange(24)]), "nested"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_the_state_is_as_it_was(case):
    h = begun()
    call, text = BAD[case]
    before = hierarchies.flat(h.state_dict())
    with pytest.raises(InputError, match=text):
        call(h)
    after = hierarchies.flat(h.state_dict())
    assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"merge_thresholds": (0.7, 0.8)}, "decrease"),
        ({"merge_thresholds": (0.7, 0.7)}, "decrease"),
        ({"merge_thresholds": (0.7,)}, "need 2 merge thresholds"),
        ({"merge_thresholds": (1.7, 0.7)}, "between 0 and 1"),
        ({"levels": 30, "merge_thresholds": tuple(np.linspace(0.9, 0.1, 29))}, "more than 24 samples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        Hierarchy(24, D, **options)
    with pytest.raises(InputError, match="call fit first"):
        small().update([0], np.ones((1, D)))


def test_signals_of_a_level_against_plain_definitions():
    random = np.random.default_rng(0)
    h, truth = begun(60), random.integers(0, 3, 60)
    truth[:10] = -1  # no label
    h.health(truth)
    before = h.labels(np.arange(60))[1]
    for _ in range(5):
        h.update(random.permutation(60)[:20], unit(random.normal(size=(20, D))))
    found, now = h.health(truth), h.labels(np.arange(60))[1]
    sizes = [int((now == c).sum()) for c in set(now.tolist())]
    shares = np.array(sizes) / 60
    known = truth >= 0
    pure = sum(np.bincount(truth[known & (now == c)], minlength=1).max() for c in set(now.tolist()))
    moved = 60 - sum(np.bincount(now[before == c]).max() for c in set(before.tolist()))
    assert found["health/level2_clusters"] == len(sizes)
    assert found["health/level2_children"] == pytest.approx(60 / len(sizes))
    assert found["health/level2_largest_share"] == pytest.approx(max(shares))
    assert found["health/level2_entropy"] == pytest.approx(
        -(shares * np.log(shares)).sum() / np.log(len(sizes))
    )
    assert found["health/level2_purity"] == pytest.approx(pure / known.sum())
    assert found["health/level2_churn"] == pytest.approx(moved / 60)
    assert found["health/level2_splits"] - found["health/level2_merges"] == len(sizes) - len(
        set(before.tolist())
    )
    assert h.health()["health/level2_churn"] == 0
    assert "health/level2_nmi" not in h.health()
