"""Trustworthiness, continuity and recall against a slow reference; node classification; plots."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raysurl.data.planetoid import TEST, TRAIN, VALIDATION
from raysurl.errors import InputError
from raysurl.evaluate import embedding, evaluate, nodes
from raysurl.evaluate.division import embedding_points
from raysurl.evaluate.embedding import neighbourhood_scores
from raysurl.evaluate.features import Features, NodeFeatures
from raysurl.recipe import Evaluation
from raysurl.report import scatter


def points(count, dim, seed):
    return np.random.default_rng(seed).normal(size=(count, dim))


def slow(high, low, k):
    """The definitions, one point at a time; ranks by distance, then index."""

    def order(rows, i):
        distance = ((rows - rows[i]) ** 2).sum(axis=1)
        return [j for j in sorted(range(len(rows)), key=lambda j: (distance[j], j)) if j != i]

    n, intruders, lost, shared = len(high), 0, 0, 0
    for i in range(n):
        far, near = order(high, i), order(low, i)
        intruders += sum(far.index(j) + 1 - k for j in near[:k] if j not in far[:k])
        lost += sum(near.index(j) + 1 - k for j in far[:k] if j not in near[:k])
        shared += len(set(far[:k]) & set(near[:k]))
    scale = 2 / (n * k * (2 * n - 3 * k - 1))
    return 1 - scale * intruders, 1 - scale * lost, shared / (n * k)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_equal_to_the_slow_reference(k):
    high = points(60, 7, 0)
    low = high[:, :2] + 0.5 * points(60, 2, 1)
    scores = neighbourhood_scores(high, low, k)
    expected = slow(high, low, k)
    np.testing.assert_allclose(list(scores.values()), expected, rtol=1e-12)


@pytest.mark.parametrize("block", [1024, 7])
def test_equal_to_scikit_learn_in_whatever_blocks(block, monkeypatch):
    from sklearn.manifold import trustworthiness

    monkeypatch.setattr(embedding, "BLOCK", block)
    high, low = points(150, 6, 3), points(150, 2, 4)
    found = neighbourhood_scores(high, low, 8)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(high, low, n_neighbors=8))
    assert found["continuity"] == pytest.approx(trustworthiness(low, high, n_neighbors=8))


def test_scores_of_an_embedding_carry_the_bootstraps_interval():
    rows = torch.from_numpy(points(300, 6, 5)).float()
    given = replace(Features.unlabelled(rows[:, :2] + 0.3), inputs=rows)
    found = evaluate(given, Evaluation(), protocols=["embedding"])
    each = embedding.scores_of_points(rows, rows[:, :2], 10)
    for name, values in each.items():
        half = 1.96 * values.std() / np.sqrt(300)
        low, high = found[f"eval/{name}"].interval
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 3)


def test_a_copy_is_perfect_and_noise_is_not():
    high = points(200, 5, 0)
    assert neighbourhood_scores(high, 3 * high + 1, 10) == {
        "trustworthiness": 1.0,
        "continuity": 1.0,
        "knn_recall": 1.0,
    }
    noise = neighbourhood_scores(high, points(200, 2, 1), 10)
    assert noise["trustworthiness"] == pytest.approx(0.5, abs=0.06)
    assert noise["knn_recall"] == pytest.approx(10 / 199, abs=0.03)


@pytest.mark.parametrize(
    ("high", "low", "k", "message"),
    [
        (np.zeros((9, 2)), np.zeros((8, 2)), 2, "9 inputs and 8"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 5, "below half"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0, "at least 1"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), 2, "finite"),
        (np.zeros(9), np.zeros((9, 2)), 2, "matrix"),
    ],
)
def test_bad_points_are_named(high, low, k, message):
    with pytest.raises(InputError, match=message):
        neighbourhood_scores(high, low, k)


def test_the_protocol_scores_the_samples_whose_inputs_it_is_given():
    high, low = torch.from_numpy(points(50, 4, 0)), torch.from_numpy(points(50, 2, 1))
    which = embedding_points(50, 20)
    assert len(which) == len(set(which.tolist())) == 20
    features = Features(
        low, torch.full((50,), -1), low[:0], torch.zeros(0, dtype=torch.int64), 0, inputs=high[which]
    )
    settings = Evaluation(protocols=("embedding",), embedding_points=20, embedding_k=3)
    found = evaluate(features, settings)
    expected = neighbourhood_scores(high[which], low[which], 3)
    assert found == {f"eval/{name}": value for name, value in expected.items()}


# -------------------------------------------------------------------- nodes


def labelled_nodes(noise):
    labels = torch.arange(400) % 4
    features = torch.eye(8)[labels] + noise * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    split = torch.zeros(400, dtype=torch.uint8)
    split[:80], split[80:200], split[200:] = TRAIN, VALIDATION, TEST
    return NodeFeatures(features, labels, split)


def test_nodes_are_classified_on_the_own_split_and_on_random_ones():
    found = nodes_metrics(labelled_nodes(0.1))
    assert found["eval/linear_top1"] == found["eval/linear_random_top1"] == 100
    noisy = nodes_metrics(labelled_nodes(1.0))
    assert 40 < noisy["eval/linear_top1"] < 95
    assert noisy["eval/linear_random_top1_std"] > 0
    alone = nodes_metrics(NodeFeatures(labelled_nodes(1.0).features, labelled_nodes(1.0).labels, None))
    assert set(alone) == {"eval/linear_top1", "eval/linear_top1_std"}
    assert alone["eval/linear_top1"] == noisy["eval/linear_random_top1"]


def nodes_metrics(given):
    few = Features(
        given.features[:4], given.labels[:4], given.features[4:8], given.labels[4:8], 4, nodes=given
    )
    return evaluate(few, Evaluation(protocols=("nodes",), random_splits=3))


def test_test_nodes_play_no_part_in_the_choice():
    given = labelled_nodes(1.0)
    shuffled = given.labels.clone()
    shuffled[200:] = shuffled[200:].flip(0).roll(1)
    validation, _ = nodes.accuracy(given, given.split)
    assert nodes.accuracy(NodeFeatures(given.features, shuffled, given.split), given.split)[0] == validation


def test_a_wide_matrix_gives_the_regression_of_the_wide_matrix():
    """Rows expressed in the span of the train rows: the same predictions as without."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    rows, labels = torch.from_numpy(random.normal(size=(90, 200)).astype(np.float32)), torch.arange(90) % 3
    rows[:, :3] += 2 * torch.eye(3)[labels]
    split = torch.tensor([TRAIN] * 30 + [VALIDATION] * 30 + [TEST] * 30, dtype=torch.uint8)
    reached = []
    mean = rows[:30].mean(0)
    by = (rows[:30] - mean).square().mean().sqrt()
    train, test = ((x - mean) / by for x in (rows[:30], rows[30:]))
    for penalty in nodes.PENALTIES:
        model = LogisticRegression(C=1 / (penalty * 30), max_iter=2000, tol=1e-6).fit(train, labels[:30])
        reached.append(
            [100 * model.score(test[part], labels[30:][part]) for part in (slice(30), slice(30, 60))]
        )
    best = max(reached, key=lambda pair: pair[0])
    assert nodes.accuracy(NodeFeatures(rows, labels, split), split) == pytest.approx(
        best, abs=3.4
    )  # one node of 30


def test_random_splits_hold_twenty_of_a_class_and_never_share_a_node():
    labels = torch.cat([torch.arange(2000) % 3, torch.full((10,), 3), torch.full((5,), -1)])
    split = nodes.random_split(labels, seed=1)
    counts = [int((split[labels == c] == TRAIN).sum()) for c in range(4)]
    assert counts == [20, 20, 20, 5]
    assert int((split == VALIDATION).sum()) == 500
    assert int((split == TEST).sum()) == 1000
    assert not split[labels < 0].any()
    assert torch.equal(split, nodes.random_split(labels, seed=1))
    assert not torch.equal(split, nodes.random_split(labels, seed=2))
    with pytest.raises(InputError, match="too few"):
        nodes.random_split(torch.tensor([0, 1]), seed=0)


# -------------------------------------------------------------------- plots


def test_a_plot_shows_each_class_in_a_colour_of_its_own():
    corners = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], float)
    picture = scatter.draw(corners, np.array([0, 1, 2, -1]), ["a", "b", "c"])
    height = picture.shape[0]
    found = [
        picture[y, x] for x, y in ((24, height - 24), (24, 24), (height - 24, height - 24), (height - 24, 24))
    ]
    assert [tuple(p) for p in found[:3]] == [scatter._rgb(code) for code in scatter.WHEEL[:3]]
    assert tuple(found[3]) == scatter.UNKNOWN


def test_numbers_are_a_scale_and_text_is_classes():
    line = np.stack([np.arange(50.0), np.zeros(50)], axis=1)
    scale = scatter.draw(line, np.linspace(0, 1, 50))
    text = scatter.draw(line, np.array(["x", "y"] * 25))
    assert tuple(scale[scale.shape[0] // 2, 24]) == scatter._rgb(scatter.SCALE[0])
    assert not np.array_equal(scale, text)
    for bad in (np.zeros((3, 3)), np.full((3, 2), np.nan)):
        with pytest.raises(InputError, match="finite points"):
            scatter.draw(bad)
    with pytest.raises(InputError, match="as many colours"):
        scatter.draw(line, np.zeros(3))
