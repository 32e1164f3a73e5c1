"""Retrieval, clustering, neighbours, distances and zero-shot beside independent implementations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics

from raysurl.errors import InputError
from raysurl.evaluate import Division, check, clustering, distances, evaluate, names, neighbours, retrieval
from raysurl.evaluate.features import Features
from raysurl.evaluate.nearest import RANKED, ranked_blocks
from raysurl.recipe import Evaluation, load_recipe
from raysurl.report import write_report
from raysurl.run import pretrain

PROTOCOLS = ("retrieval", "clustering", "neighbours", "distances")
SETTINGS = Evaluation(protocols=PROTOCOLS, clustering_restarts=3, neighbours_views=("weak",), neighbours_k=4)


def features(noise=1.0, train=120, test=70, classes=4):
    """Noisy corners of a cube, one a class, and the test rows with more noise on them."""
    stream = torch.Generator().manual_seed(0)
    labels = [torch.arange(n) % classes for n in (train, test)]
    rows = [
        torch.eye(8)[x] + noise / 3 * torch.randn(len(x), 8, generator=stream) + torch.ones(8) for x in labels
    ]
    weak = rows[1] + noise / 6 * torch.randn(test, 8, generator=stream)
    return Features(rows[0], labels[0], rows[1], labels[1], classes, disturbed={"weak": weak})


@pytest.fixture(scope="module")
def judged():
    given = features()
    return given, evaluate(given, SETTINGS)


def unit(rows):
    return (rows / rows.norm(dim=1, keepdim=True)).double().numpy()


def test_the_metrics_are_those_that_are_named_and_each_lies_in_its_interval(judged):
    given, found = judged
    labels = given.train_labels.numpy()
    division = Division(np.arange(120), np.arange(70), "", labels, None)
    assert set(found) == names(PROTOCOLS, SETTINGS, division)
    for name, value in found.items():
        if not name.endswith("_std"):
            low, high = value.interval
            assert low <= value <= high, name
            assert low < high or value == 100, name
    check(division, SETTINGS)


# -------------------------------------------------------------------- retrieval


def test_recall_and_map_are_those_of_a_slow_loop(judged):
    given, found = judged
    gallery, queries = unit(given.train), unit(given.test)
    recalls, precisions = {1: [], 5: [], 10: []}, []
    for query, label in zip(queries, given.test_labels.tolist(), strict=True):
        order = sorted(range(len(gallery)), key=lambda j: (-(query @ gallery[j]), j))
        hits = [given.train_labels[j] == label for j in order]
        for k, rows in recalls.items():
            rows.append(any(hits[:k]))
        ranks = [r for r, hit in enumerate(hits, 1) if hit]
        precisions.append(sum(j / r for j, r in enumerate(ranks, 1)) / len(ranks))
    for k, rows in recalls.items():
        assert found[f"eval/retrieval_recall{k}"] == pytest.approx(100 * np.mean(rows))
    assert found["eval/retrieval_map"] == pytest.approx(100 * np.mean(precisions))
    of_library = [
        metrics.average_precision_score(given.train_labels == label, gallery @ query)
        for query, label in zip(queries, given.test_labels, strict=True)
    ]
    assert found["eval/retrieval_map"] == pytest.approx(100 * np.mean(of_library), rel=1e-5)


def test_ties_go_to_the_first_of_the_gallery_in_whatever_blocks(monkeypatch):
    gallery = torch.ones(5, 3) * torch.tensor([1.0, 2, 4, 8, 16])[:, None]
    for ranked in (RANKED, 1):
        monkeypatch.setattr("raysurl.evaluate.nearest.RANKED", ranked)
        order = torch.cat([index for _, index in ranked_blocks(gallery, torch.ones(3, 3))])
        assert order.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_class_that_the_gallery_lacks_counts_as_missed():
    rows = torch.eye(2)
    found, precision = retrieval.retrieve(rows, torch.tensor([0, 0]), rows, torch.tensor([0, 1]), ks=(1, 9))
    assert [right.tolist() for right in found] == [[True, False], [True, False]]
    assert precision.tolist() == [1.0, 0.0]


# -------------------------------------------------------------------- clustering


def test_scores_of_clusters_are_scikit_learns():
    stream = np.random.default_rng(0)
    for _ in range(20):
        classes, count = stream.integers(2, 7), stream.integers(10, 60)
        found, labels = stream.integers(0, classes, count), stream.integers(0, classes, count)
        found[: count // 2] = labels[: count // 2]
        counts = clustering.contingency(found, labels, classes)
        assert clustering.nmi(counts) == pytest.approx(metrics.normalized_mutual_info_score(labels, found))
        assert clustering.ari(counts) == pytest.approx(metrics.adjusted_rand_score(labels, found))
    same = np.zeros(5, np.int64)
    assert clustering.nmi(clustering.contingency(same, same, 3)) == 1
    assert clustering.ari(clustering.contingency(same, same, 3)) == 1


def test_the_matching_is_the_best_of_all():
    from itertools import permutations

    stream = np.random.default_rng(1)
    for _ in range(10):
        found, labels = stream.integers(0, 5, 40), stream.integers(0, 4, 40)
        best = max(np.mean(np.array(p)[found] == labels) for p in permutations(range(5)))
        assert clustering.matched(found, labels, 5).mean() == pytest.approx(best)


def test_well_separated_classes_are_found_and_seeds_repeat():
    given = features(noise=0.1)
    found = evaluate(given, SETTINGS, protocols=["clustering"])
    assert found["eval/clustering_accuracy"] == 100
    assert found["eval/clustering_nmi"] == pytest.approx(1)
    assert found["eval/clustering_ari"] == pytest.approx(1)
    noisy = features(noise=2.0)
    first, again, other = (evaluate(noisy, SETTINGS, protocols=["clustering"], seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_resampled_set_moves_the_scores_about_as_their_intervals_say(judged):
    """Small tests repeat samples in a bootstrap, which raises NMI: unshifted, the interval would lie above it."""
    given, found = judged
    low, high = found["eval/clustering_nmi"].interval
    others = [
        evaluate(replace(given, test=given.test[part], test_labels=given.test_labels[part], disturbed=None),
                 SETTINGS, protocols=["clustering"])["eval/clustering_nmi"]
        for part in (torch.arange(0, 70, 2), torch.arange(1, 70, 2))
    ]  # fmt: skip
    assert low < np.mean(others) < high


# -------------------------------------------------------------------- neighbours and distances


def test_neighbours_that_stay_are_those_of_a_slow_loop(judged):
    given, found = judged
    gallery, plain, weak = (unit(x) for x in (given.train, given.test, given.disturbed["weak"]))
    kept, right = [], []
    for i in range(70):
        before, after = (
            set(np.argsort(-(gallery @ rows[i]), kind="stable")[:4].tolist()) for rows in (plain, weak)
        )
        kept.append(len(before & after) / 4)
        right.append(np.mean([given.train_labels[j] == given.test_labels[i] for j in after]))
    assert found["eval/neighbours_kept_weak"] == pytest.approx(np.mean(kept))
    assert found["eval/neighbours_class_weak"] == pytest.approx(np.mean(right))
    still = neighbours.near(given, given.test, 4)
    assert neighbours.kept(still, still.flip(1)).tolist() == [1.0] * 70


def test_distances_are_those_of_a_slow_loop_and_the_chance_is_the_area_under_the_curve(judged):
    given, found = judged
    distance = 1 - unit(given.test) @ unit(given.train).T
    same = given.test_labels.numpy()[:, None] == given.train_labels.numpy()
    areas = [metrics.roc_auc_score(same[i], -distance[i]) for i in range(70)]
    assert found["eval/distance_auc"] == pytest.approx(np.mean(areas), abs=1e-5)
    assert found["eval/distance_same"] == pytest.approx(distance[same].mean(), abs=1e-6)
    assert found["eval/distance_different"] == pytest.approx(distance[~same].mean(), abs=1e-6)
    edges = np.linspace(0, 2, distances.BINS + 1)
    a, b = (np.histogram(distance[part], edges)[0] for part in (same, ~same))
    expected = np.minimum(a / a.sum(), b / b.sum()).sum()
    assert found["eval/distance_overlap"] == pytest.approx(expected, abs=2e-3)


def test_a_part_of_many_samples_has_all_classes_where_these_come_in_turns(judged, monkeypatch):
    given, found = judged
    monkeypatch.setattr(distances, "GALLERY", 30)
    monkeypatch.setattr(distances, "QUERIES", 35)
    part = evaluate(given, SETTINGS.model_copy(update={"clustering_points": 30}))
    assert part["eval/distance_auc"] == pytest.approx(found["eval/distance_auc"], abs=0.1)
    assert part["eval/clustering_nmi"] == pytest.approx(found["eval/clustering_nmi"], abs=0.3)


def test_a_collapsed_encoder_is_at_chance_in_every_protocol():
    given = features()
    constant = replace(given, train=torch.ones(120, 8), test=torch.ones(70, 8), disturbed=None)
    found = evaluate(constant, SETTINGS)
    assert found["eval/distance_auc"] == 0.5
    assert found["eval/distance_overlap"] == 1
    assert found["eval/clustering_nmi"] == 0
    assert found["eval/retrieval_map"] < 40


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("protocol", "labels", "said"),
    [
        ("clustering", [0, 1, 7], "3 labelled train samples cannot make 8 clusters"),
        ("distances", [2, 2, 2], "needs two classes"),
        ("zeroshot", [0, 1, 2], "needs a text tower"),
    ],
)
def test_data_that_a_protocol_cannot_be_run_on_are_refused(protocol, labels, said):
    division = Division(np.arange(3), np.arange(3), "", np.array(labels), None)
    with pytest.raises(InputError, match=said):
        check(division, Evaluation(protocols=(protocol,)))


# -------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    settings = (
        *(
            "recipe=ressl/digits",
            "runtime=local",
            "data.limit=120",
            "encoder.name=convnet",
            "encoder.channels=[8]",
        ),
        *("train.batch_size=40", "train.epochs=1", "method.hidden=8", "method.dim=4", "method.queue_size=40"),
        *("log.tensorboard=false", "scale.threads=1", "eval.every_epochs=0", "eval.clustering_restarts=2"),
        f"eval.protocols=[{', '.join(PROTOCOLS)}]",
    )
    return pretrain(load_recipe([*settings, f"output={folder}"]))


@pytest.mark.slow
def test_a_run_is_judged_beside_its_baselines_and_its_report_shows_neighbours_and_distances(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    found = results["metrics"]
    for name in ("retrieval_map", "clustering_nmi", "distance_auc"):
        assert {f"eval/{name}", f"eval/untrained_{name}", f"eval/pixels_{name}"} <= set(found)
        low, high = results["intervals"][f"eval/{name}"]
        assert low <= found[f"eval/{name}"] <= high
    assert {"eval/neighbours_kept_weak", "eval/untrained_neighbours_kept_contrastive"} <= set(found)
    assert len(results["gains"]["eval/retrieval_recall1"]["pixels"]) == 3
    with np.load(run_dir / "samples" / "disturbed.npz") as shown:
        assert shown["images"].shape[:2] == (9, 11)
        assert shown["rows"].tolist() == ["plain", "weak", "contrastive"] * 3
        assert not np.array_equal(shown["images"][0, 0], shown["images"][2, 0])
    with np.load(run_dir / "samples" / "distances.npz") as shown:
        assert shown["encoder"].sum() == shown["pixels"].sum() == 360 * 120
    text = write_report(run_dir).read_text()
    for said in ("Neighbours of augmented images", "Distances", "k-means, NMI", "Retrieval, recall at 5"):
        assert said in text


@pytest.mark.slow
def test_evaluate_says_of_the_run_what_the_run_said(run_dir, capsys):
    from raysurl.commands import evaluate as command

    command.main([f"run={run_dir}"])
    again = json.loads((run_dir / "evaluation.json").read_text())
    first = json.loads((run_dir / "results.json").read_text())
    assert again["metrics"] == {k: v for k, v in first["metrics"].items() if k != "train/loss"}
    assert again["intervals"] == first["intervals"]
