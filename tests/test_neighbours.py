"""Neighbour graphs against brute force; density clusters against scikit-learn's and against their definition."""

import numpy as np
import pytest
import torch
from golden import load
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN

from raysurl import neighbours
from raysurl.errors import InputError
from raysurl.hierarchy.dbscan import NOISE, dbscan, nested_labels, singletons
from raysurl.methods.rcl.offline import DensityLabels
from raysurl.neighbours import KnnGraph, knn_graph

few = settings(max_examples=40)
# A coarse grid gives what is hard: duplicates, equal distances, and distances that equal the radius.
grids = st.integers(5, 40).flatmap(
    lambda n: arrays(np.float32, (n, 2), elements=st.integers(0, 6).map(float))
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(n, *, dim=16, centres=30, spread=0.15, seed=0):
    random = np.random.default_rng(seed)
    middle = unit(random.normal(size=(centres, dim)))
    return unit(middle[random.integers(0, centres, n)] + spread * random.normal(size=(n, dim)))


def all_distances(rows):
    wide = rows.astype(np.float64)
    return cdist(wide, wide)


def check(graph, rows, k):
    """The graph is the k nearest neighbours, whichever of equally distant ones."""
    distances = all_distances(rows)
    assert graph.distances.dtype == np.float32
    assert graph.indices.dtype == np.int64
    assert graph.indices.shape == graph.distances.shape == (len(rows), k)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(graph.distances, np.sort(distances, axis=1)[:, :k], rtol=1e-5, atol=1e-6)
    of_found = np.take_along_axis(distances, graph.indices, axis=1)  # infinite where it is the sample itself
    np.testing.assert_allclose(graph.distances, of_found, rtol=1e-5, atol=1e-6)
    assert (np.diff(np.sort(graph.indices, axis=1), axis=1) > 0).all()


@few
@given(grids, st.data())
def test_exact_graph_is_brute_force_also_with_duplicates(rows, data):
    k = data.draw(st.integers(1, len(rows) - 1))
    check(knn_graph(rows, k, metric="euclidean"), rows, k)
    check(knn_graph(rows, k, metric="euclidean", exact=False), rows, k)  # so few rows are one cell


@few
@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 10**6), st.floats(0.01, 1000))
def test_cosine_is_euclidean_between_unit_rows(n, dim, seed, scale):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    k = min(7, n - 1)
    check(knn_graph(scale * rows, k), unit(rows), k)


def test_small_distances_survive_a_large_offset_and_zero_rows_stay():
    rows = np.random.default_rng(0).integers(0, 99, (300, 3)).astype(np.float64)
    check(knn_graph(rows + 1e6, 5, metric="euclidean"), rows, 5)
    close = unit(np.array([1.0, 0, 0]) + 1e-4 * rows / 99)
    check(knn_graph(close, 299), close, 299)
    graph = knn_graph(np.array([[0.0, 0], [3, 4], [-8, 0]]), 2)
    np.testing.assert_allclose(graph.distances[0], [1, 1])


def test_approximate_graph_says_how_much_it_has_found():
    rows = blobs(4000)
    exact, graph = knn_graph(rows, 10), knn_graph(rows, 10, exact=False, seed=1)
    assert exact.recall == 1
    assert graph.recall >= 0.95
    of_all = np.mean([np.isin(a, b).mean() for a, b in zip(graph.indices, exact.indices, strict=True)])
    assert graph.recall == pytest.approx(of_all, abs=0.02)
    assert (graph.indices != np.arange(4000)[:, None]).all()
    np.testing.assert_array_equal(graph.indices, knn_graph(rows, 10, exact=False, seed=1).indices)


@pytest.mark.slow
def test_large_sets_are_searched_in_cells_and_exactly_where_cells_do_not_help(monkeypatch):
    exact = []
    search = neighbours.faiss.knn
    monkeypatch.setattr(neighbours.faiss, "knn", lambda q, x, k: exact.append(len(q)) or search(q, x, k))
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 3000)
    clustered = blobs(3000)
    assert knn_graph(clustered, 10).recall >= 0.95
    assert sum(exact) < 600  # the sampled rows, and the few whose cells hold less than ten
    assert knn_graph(clustered[1:], 10).recall == 1
    assert sum(exact) > 2999
    rows = unit(np.random.default_rng(0).normal(size=(3000, 64)))
    check(knn_graph(rows, 10), rows, 10)


def test_cells_with_too_few_samples_and_equal_rows_still_give_k_neighbours():
    rows = np.repeat(np.eye(8, dtype=np.float32), 100, axis=0)
    graph = knn_graph(rows, 150, exact=False)
    assert (graph.indices >= 0).all()
    np.testing.assert_allclose(graph.distances[:, :99], 0)
    np.testing.assert_allclose(graph.distances[:, 99:], np.sqrt(2), rtol=1e-6)
    assert (graph.indices != np.arange(800)[:, None]).all()


@pytest.mark.parametrize(
    ("rows", "k", "says"),
    [
        (np.ones((1, 3)), 1, "at least two rows"),
        (np.ones(4), 1, "at least two rows"),
        (np.ones((4, 0)), 1, "at least two rows"),
        (np.ones((4, 3)), 4, "between 1 and 3 neighbours, not k=4"),
        (np.ones((4, 3)), 0, "between 1 and 3 neighbours, not k=0"),
        (np.array([[1.0, np.nan], [1, 1], [np.inf, 1]]), 1, "2 of 3 feature rows are not finite"),
        (np.array([[1e200, 1], [1, 1]]), 1, "1 of 2 feature rows are not finite"),
    ],
)
def test_bad_input_is_one_sentence(rows, k, says):
    with pytest.raises(InputError, match=says):
        knn_graph(rows, k)
    with pytest.raises(InputError, match="1e15"):
        knn_graph(np.array([[1e30], [0.0]]), 1, metric="euclidean")
    with pytest.raises(InputError, match="cosine or euclidean"):
        knn_graph(np.ones((4, 3)), 1, metric="l1")


def same_partition(ours, theirs):
    pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
    return len(pairs) == len(set(ours.tolist())) == len(set(theirs.tolist()))


def check_dbscan(ours, theirs, core, distances, radius):
    """Equal but for border samples that reach several clusters: ours then join the nearest core sample's."""
    assert same_partition(ours[core], theirs[core])
    np.testing.assert_array_equal(ours == NOISE, theirs == NOISE)
    for i in np.flatnonzero(~core & (ours != NOISE)):
        to_core = np.where(core, distances[i], np.inf)
        assert to_core.min() <= radius * (1 + 1e-6)
        assert ours[i] in ours[np.isclose(to_core, to_core.min(), rtol=1e-6)]


@pytest.mark.parametrize("radius", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
def test_all_neighbours_give_scikit_learns_clusters(radius):
    golden = load("rcl_dbscan_sklearn")
    rows, theirs = golden["X"], golden[f"eps{radius}_labels"]
    graph = knn_graph(rows, len(rows) - 1)
    ours = dbscan(graph, radius=radius, min_points=int(golden["min_samples"]))
    core = golden[f"eps{radius}_core"]
    check_dbscan(ours, theirs, core, all_distances(rows), radius)
    assert (ours != theirs).sum() <= 1  # numbered alike too; one border sample reaches two clusters


@few
@given(grids, st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.integers(1, 5))
def test_all_neighbours_give_dbscan_where_distances_equal_the_radius(rows, radius, min_points):
    graph = knn_graph(rows, len(rows) - 1, metric="euclidean")
    ours = dbscan(graph, radius=radius, min_points=min_points)
    sklearn = DBSCAN(eps=radius, min_samples=min_points).fit(rows)
    core = np.isin(np.arange(len(rows)), sklearn.core_sample_indices_)
    check_dbscan(ours, sklearn.labels_, core, all_distances(rows), radius)


@few
@given(grids, st.sampled_from([1.0, 1.5, 2.0]), st.integers(3, 8))
def test_fewer_neighbours_split_clusters_but_never_join_them(rows, radius, k):
    k = min(k, len(rows) - 1)
    whole = knn_graph(rows, len(rows) - 1, metric="euclidean")
    full, part = (
        dbscan(g, radius=radius) for g in (whole, KnnGraph(whole.distances[:, :k], whole.indices[:, :k], 1.0))
    )
    core = (whole.distances <= radius).sum(axis=1) + 1 >= 4
    for label in set(part[core].tolist()):
        assert len(set(full[core & (part == label)].tolist())) == 1
    np.testing.assert_array_equal(part == NOISE, full == NOISE)


def test_neighbours_cut_off_do_split_a_cluster():
    rows = np.array([[x, y] for x in (0.0, 1.0) for y in np.linspace(0, 0.1, 8)])
    assert set(dbscan(knn_graph(rows, 15, metric="euclidean"), radius=1.0).tolist()) == {0}
    assert set(dbscan(knn_graph(rows, 4, metric="euclidean"), radius=1.0).tolist()) == {0, 1}


def slow_nested(graph, radii):
    """Level by level with loops; the labels of a level only matter up to their names."""
    levels = [singletons(dbscan(graph, radius=radii[0]))]
    for level, radius in enumerate(radii[1:]):
        labels, coarser = dbscan(graph, radius=radius), np.empty_like(levels[0])
        for cluster in set(levels[-1].tolist()):
            members = np.flatnonzero(levels[-1] == cluster)
            votes = {label: (labels[members] == label).sum() for label in labels[members].tolist()}
            winner = max(votes, key=lambda label: (votes[label], label != NOISE, -label))
            coarser[members] = winner if winner != NOISE else 10**6 * (level + 1) + cluster
        levels.append(coarser)
    return levels


@few
@given(grids, st.integers(3, 10))
def test_nested_labels_are_the_majority_of_each_finer_cluster(rows, k):
    graph = knn_graph(rows, min(k, len(rows) - 1), metric="euclidean")
    levels = nested_labels(graph, (1.0, 1.5, 2.0, 2.5))
    assert levels.dtype == np.int64
    assert levels.shape == (4, len(rows))
    np.testing.assert_array_equal(levels[0], singletons(dbscan(graph, radius=1.0)))
    for finer, coarser, slow in zip(
        levels, levels[1:], slow_nested(graph, (1.0, 1.5, 2.0, 2.5))[1:], strict=False
    ):
        assert len(set(zip(finer.tolist(), coarser.tolist(), strict=True))) == len(set(finer.tolist()))
        assert same_partition(coarser, slow)
        assert set(coarser.tolist()) == set(range(coarser.max() + 1))


def test_a_border_sample_follows_the_majority_of_its_finer_cluster():
    # At radius 1 the samples up to 0.3 are core and 1.25 is their border; at radius 1.2 the sample 2.1 is core too
    # and nearer to 1.25, which alone would change its cluster.
    rows = np.array([-0.6, -0.4, -0.2, 0.3, 1.25, 2.1, 3.0, 3.25])[:, None]
    graph = knn_graph(rows, 7, metric="euclidean")
    assert dbscan(graph, radius=1.0).tolist() == [0, 0, 0, 0, 0, NOISE, NOISE, NOISE]
    assert dbscan(graph, radius=1.2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    levels = nested_labels(graph, (1.0, 1.2))
    assert levels.tolist() == [[0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert nested_labels(graph, ()).shape == (0, 8)


def test_bad_radii_and_points_are_one_sentence():
    graph = knn_graph(np.random.default_rng(0).normal(size=(9, 2)), 2)
    with pytest.raises(InputError, match="positive and finite, not nan"):
        dbscan(graph, radius=float("nan"), min_points=2)
    with pytest.raises(InputError, match="between 1 and 3, not 4"):
        dbscan(graph, radius=1.0)
    with pytest.raises(InputError, match=r"must ascend.*0.8, 0.7"):
        nested_labels(graph, (0.8, 0.7), min_points=2)


def test_density_label_bank_is_dbscan_per_radius_with_noise_alone():
    rows = blobs(600, dim=8, centres=12, spread=0.2)
    radii = (0.3, 0.4, 0.5)
    bank = DensityLabels(600, radii=radii, seed=0)
    bank.fit(rows)
    graph, index = knn_graph(rows, 32), np.arange(600)
    labels = bank.labels(index)
    np.testing.assert_array_equal(labels[0], index)
    for radius, level in zip(radii, labels[1:], strict=True):
        plain = dbscan(graph, radius=radius)
        noise = plain == NOISE
        assert noise.any()
        np.testing.assert_array_equal(level[~noise], plain[~noise])
        assert len(np.unique(level)) == plain.max() + 1 + noise.sum()
    assert bank.recall == 1
    other = DensityLabels(600, radii=radii, seed=0)
    other.load_state_dict({name: torch.clone(value) for name, value in bank.state_dict().items()})
    np.testing.assert_array_equal(other.labels(index[::7]), labels[:, ::7])


def test_density_label_bank_refuses_what_it_cannot_cluster():
    with pytest.raises(InputError, match="must ascend"):
        DensityLabels(40, radii=(0.8, 0.7, 0.6), seed=0)
    with pytest.raises(InputError, match="positive"):
        DensityLabels(40, radii=(0, 0.7), seed=0)
    with pytest.raises(InputError, match="at least 3 neighbours"):
        DensityLabels(40, radii=(0.7,), seed=0, num_neighbours=2)
    with pytest.raises(InputError, match="more than 3 samples"):
        DensityLabels(3, radii=(0.7,), seed=0)
    bank = DensityLabels(40, radii=(0.7,), seed=0)
    with pytest.raises(InputError, match="40 finite feature rows"):
        bank.fit(np.ones((10, 4), np.float32))
    with pytest.raises(InputError, match="label bank"):
        bank.load_state_dict(DensityLabels(40, radii=(0.6, 0.7), seed=0).state_dict())
