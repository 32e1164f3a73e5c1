"""Outliers, clusters and subsets against scikit-learn and slow loops."""

import csv
from pathlib import Path

import numpy as np
import pytest
from curated import IMAGES, embedded
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from raysurl import cli
from raysurl.curation import clustering, selection
from raysurl.curation.clustering import cluster
from raysurl.curation.outlying import outliers
from raysurl.curation.rows import embeddings_of
from raysurl.curation.selection import CHOOSERS, select
from raysurl.errors import InputError


def blobs(
    seed: int = 0, count: int = 300, groups: int = 6, spread: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(groups, size=count)
    return random.normal(size=(groups, 8))[labels] + spread * random.normal(size=(count, 8)), labels


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 10, 25])
def test_scores_are_those_of_scikit_learn(k):
    rows, _ = blobs()
    rows[::50] = np.random.default_rng(1).normal(size=(6, 8))
    factor = -LocalOutlierFactor(n_neighbors=k).fit(unit(rows)).negative_outlier_factor_
    assert outliers(rows, k, "lof", whiten=False).scores == pytest.approx(factor, rel=2e-3)
    distance = NearestNeighbors(n_neighbors=k + 1).fit(unit(rows)).kneighbors(unit(rows))[0][:, 1:]
    found = outliers(rows, k, "knn", whiten=False)
    assert found.scores == pytest.approx(distance.mean(axis=1), abs=1e-4)
    assert (np.diff(found.scores[found.order]) <= 0).all()


@pytest.mark.parametrize("by", ["knn", "lof"])
def test_planted_outliers_come_first_and_copies_have_no_infinite_score(by):
    rows, _ = blobs(spread=0.02)
    if by == "knn":  # many copies make the surroundings of all others look thin
        rows[10:30] = rows[10]
    rows[:5] = np.random.default_rng(2).normal(size=(5, 8))
    found = outliers(rows, 10, by)
    assert np.isfinite(found.scores).all()
    assert set(found.order[:5].tolist()) == {0, 1, 2, 3, 4}


# -------------------------------------------------------------------- clusters


def test_kmeans_finds_what_was_planted_and_its_medoids():
    rows, labels = blobs()
    found = cluster(rows, 6)
    assert adjusted_rand_score(labels, found.labels[0]) == pytest.approx(1)
    sizes = np.bincount(found.labels[0])
    assert (np.diff(sizes) <= 0).all()
    z = unit(rows)
    for number, medoid in enumerate(found.medoids[0].tolist()):
        members = np.flatnonzero(found.labels[0] == number)
        mean = z[members].mean(axis=0)
        assert medoid == members[(z[members] @ mean).argmax()]
        assert found.cosines[0][members] == pytest.approx(z[members] @ mean / np.linalg.norm(mean), abs=1e-5)


def test_the_hierarchy_is_nested_and_near_to_what_was_planted():
    random = np.random.default_rng(0)
    labels = random.integers(9, size=900)
    middle = np.repeat(np.eye(16)[:3], 3, axis=0) + 0.5 * np.eye(16)[3:12]  # cosines .8 within three, else 0
    rows = middle[labels] + 0.05 * random.normal(size=(900, 16))
    found = cluster(rows, by="hierarchy", thresholds=[0.9, 0.5])
    assert found.labels.shape == (2, 900)
    assert len({(a, b) for a, b in found.labels.T.tolist()}) == len(set(found.labels[0].tolist()))
    # it moves, splits and merges, and is not done with it after a few passes
    assert adjusted_rand_score(labels, found.labels[0]) > 0.7
    assert adjusted_rand_score(labels // 3, found.labels[1]) > 0.5
    chosen = cluster(rows, by="hierarchy").thresholds  # by the data
    assert 0 < chosen[1] < chosen[0] < 1


# -------------------------------------------------------------------- subsets


@settings(max_examples=25)
@given(st.integers(1, 60), st.data(), st.sampled_from(sorted(CHOOSERS)), st.integers(0, 100), st.booleans())
def test_so_many_are_chosen_none_twice_and_the_same_again(count, data, by, seed, copies):
    rows, _ = blobs(seed, count)
    if copies:
        rows[:] = rows[0]
    n = data.draw(st.integers(1, count))
    chosen = select(rows, n, by, seed=seed)
    assert len(chosen) == n == len(set(chosen.tolist()))
    assert (chosen >= 0).all()
    assert (chosen < count).all()
    assert (select(rows, n, by, seed=seed) == chosen).all()


def test_kcentre_takes_the_farthest_again_and_again():
    rows, _ = blobs(count=80)
    chosen = select(rows, 12, "kcentre", seed=3).tolist()
    z = unit(rows)
    for i in range(1, 12):
        nearest = (z @ z[chosen[:i]].T).max(axis=1)
        nearest[chosen[:i]] = 9
        assert nearest[chosen[i]] == pytest.approx(nearest.min(), abs=1e-6)


def test_typicality_takes_the_densest_of_each_cluster_the_largest_first():
    rows, _ = blobs(count=120)
    of, z = embeddings_of(rows), unit(rows)
    chosen = select(rows, 10, "typicality", seed=1)
    labels = clustering.kmeans(of, 10, seed=1)[1]
    sizes = np.bincount(labels)
    assert (np.diff(sizes[labels[chosen]]) <= 0).all()
    for row in chosen:
        members = np.flatnonzero(labels == labels[row])
        distance = np.sort(np.linalg.norm(z[members, None] - z[None, members], axis=2), axis=1)
        mean = distance[:, 1 : selection.NEIGHBOURS + 1].mean(axis=1) if len(members) > 1 else np.zeros(1)
        assert mean[members == row][0] == pytest.approx(mean.min(), abs=1e-4)


def test_density_takes_the_nearest_to_each_mean_and_one_of_each_planted_group():
    rows, labels = blobs()
    chosen = select(rows, 6, "density")
    assert sorted(labels[chosen]) == list(range(6))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: select(x, 0), "n=0 must be between 1 and 300"),
        (lambda x: select(x, 301), "n=301 must be"),
        (lambda x: select(x, 3, "best"), "by=best is not known"),
        (lambda x: cluster(x, 301), "k=301 clusters"),
        (lambda x: cluster(x, 3, "tree"), "by=tree is not known"),
        (lambda x: outliers(x, 300), "not k=300"),
        (lambda x: outliers(x[:, 0], 3), "must be"),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(InputError, match=said):
        call(blobs()[0])


# -------------------------------------------------------------------- commands

COUNT = IMAGES + 3


@pytest.mark.parametrize(
    ("name", "arguments", "file", "rows"),
    [
        ("outliers", ["k=5", "top=8"], "outliers.csv", COUNT),
        ("cluster", ["k=4"], "clusters.csv", COUNT),
        ("cluster", ["by=hierarchy", "thresholds=[0.999,0.9]"], "clusters.csv", COUNT),
        ("select", ["n=5"], "selected.csv", 5),
    ],
)
def test_each_command_writes_its_lists_and_a_page(name, arguments, file, rows, tmp_path, capsys):
    out = tmp_path / "out"
    cli._main_of(name)([f"embeddings={embedded()}", f"output={out}", *arguments])
    table = list(csv.DictReader((out / file).open()))
    assert len(table) == rows
    assert all(Path(row["name"]).is_file() for row in table)
    page = (out / "page.html").read_text()
    assert "data:image/png;base64," in page
    assert "no picture" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert str(out) in capsys.readouterr().out
