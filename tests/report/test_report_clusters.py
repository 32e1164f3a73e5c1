"""The part of a report on clusters: which are shown, their images, and their signals over time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import make_run, report_of

from raysurl import health
from raysurl.hierarchy import Hierarchy
from raysurl.memory import Queue
from raysurl.methods.rcl.memory import ClusterMemory, own
from raysurl.methods.rcl.offline import KMeansLabels
from raysurl.report import tree
from raysurl.report.contact_sheet import SHOWN_CHILDREN, SHOWN_IMAGES, sheet
from raysurl.report.run import read_run

# 60 samples: top cluster 0 with 30 in three parts, 1 with 20 in two, 2 with 8 in one, 3 and 4 with one sample each
TOP = np.repeat([0, 1, 2, 3, 4], [30, 20, 8, 1, 1])
MIDDLE = np.repeat([0, 1, 2, 3, 4, 5, 6, 7], [15, 10, 5, 12, 8, 8, 1, 1])
LABELS = np.stack([MIDDLE, TOP])
EVERYONE = np.ones(60, bool)


def test_the_largest_and_clusters_with_children_are_shown_with_their_largest_children():
    lines = sheet(LABELS, EVERYONE, None, seed=0)
    assert [(line.chosen, line.level, line.size, line.children) for line in lines] == [
        ("largest", 3, 30, 3),
        ("", 2, 15, 15),
        ("", 2, 10, 10),
        ("", 2, 5, 5),
        ("median", 3, 20, 2),
        ("", 2, 12, 12),
        ("", 2, 8, 8),
    ]
    for line in lines:
        row = LABELS[line.level - 2, line.samples]
        assert len(set(row.tolist())) == 1
        assert len(set(line.samples.tolist())) == min(line.size, SHOWN_IMAGES)
        assert (line.common, np.isnan(line.share)) == (-1, True)


def test_the_choice_depends_on_the_seed_alone_and_leaves_out_what_cannot_be_read():
    random = np.random.default_rng(0)
    middle = random.integers(0, 40, 2000)
    labels = np.stack([middle, middle % 7])
    readable = random.random(2000) < 0.5
    first, again, other = (sheet(labels, readable, None, seed=s) for s in (1, 1, 2))
    assert [line.chosen for line in first if line.chosen] == ["largest", "median", "random"]
    assert all((a.samples == b.samples).all() for a, b in zip(first, again, strict=True))
    assert any(a.samples.tolist() != b.samples.tolist() for a, b in zip(first, other, strict=False))
    assert all(readable[line.samples].all() for line in first)
    assert len(first) <= 3 * (1 + SHOWN_CHILDREN)


def test_the_commonest_class_counts_labelled_members_only():
    truth = np.where(np.arange(60) < 10, 4, -1)
    truth[10:15] = 2
    top = sheet(LABELS, EVERYONE, truth, seed=0)[0]
    assert (top.common, top.share) == (4, pytest.approx(10 / 15))


def test_without_clusters_there_is_no_sheet():
    assert sheet(np.zeros((0, 60), np.int64), EVERYONE, None, seed=0) == []
    assert sheet(LABELS, np.zeros(60, bool), None, seed=0) == []


def test_the_memory_of_clusters_gives_the_labels_of_all_samples():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 6)).astype(np.float32)
    hierarchy = Hierarchy(60, 6, seed=0)
    hierarchy.begin(features, LABELS)
    hierarchy.update(np.arange(30), features[30:])
    offline = KMeansLabels(60, shares=(0.2, 0.1), seed=0)
    offline.fit(features / np.linalg.norm(features, axis=1, keepdims=True))
    for clusters in (hierarchy, offline):
        memory = ClusterMemory(Queue(8, 6), lambda made=clusters: made, own, views=2, seed=0)
        assert memory.cluster_labels() is None
        memory.partition = clusters
        assert (memory.cluster_labels() == clusters.labels(np.arange(60))[1:]).all()


SIGNALS = {"clusters": 40.0, "children": 6.0, "largest_share": 0.25, "nmi": 0.5, "purity": 0.75}


def with_clusters(path: Path, **changes: float) -> Path:
    run = make_run(path, results=None, samples=False)
    with (run / "metrics.jsonl").open("a") as file:
        for step in (40, 60, 80):
            values = {f"health/level{h}_{k}": v for h in (2, 3) for k, v in (SIGNALS | changes).items()}
            file.write(json.dumps({"step": step, **values}) + "\n")
    return run


def test_the_report_draws_the_clusters(tmp_path):
    path = with_clusters(tmp_path / "a")
    lines = sheet(LABELS, EVERYONE, None, seed=0)
    count = sum(len(line.samples) for line in lines)
    columns = ("chosen", "level", "size", "children", "common", "share")
    (path / "samples").mkdir()
    np.savez(
        path / "samples" / "clusters.npz",
        images=np.zeros((count, 8, 8, 3), np.uint8),
        labels=np.full(count, -1),
        line=np.repeat(np.arange(len(lines)), [len(line.samples) for line in lines]),
        **{name: np.array([getattr(line, name) for line in lines]) for name in columns},
    )
    html, page = report_of(path)
    for title in ("Clusters", "Largest cluster", "NMI with the labels", "Purity"):
        assert f"<figcaption><b>{title}</b>" in html
    assert "<b>Level 3, the largest</b>" in html
    assert "30 images · 3 clusters within" in page.text
    assert page.tags.count("img") == count
    assert "health/level" not in html  # shown in their own part, not among the encoder's metrics
    assert "Healthy" in page.text


def test_a_damaged_sheet_is_left_out(tmp_path):
    path = with_clusters(tmp_path / "a")
    (path / "samples").mkdir()
    np.savez(path / "samples" / "clusters.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    html, page = report_of(path)
    assert "Level 3, the largest" not in html
    assert "img" not in page.tags


def test_the_reports_verdict_names_both_extremes(tmp_path):
    _, page = report_of(with_clusters(tmp_path / "a", largest_share=0.9, children=1.0))
    assert "Giant cluster: 90% of the samples are in one of the 40 clusters of hierarchy level2" in page.text
    assert "Fragmented: hierarchy level3 has 40 clusters" in page.text


def test_diagnose_includes_the_clusters():
    metrics = {f"health/level2_{name}": value for name, value in SIGNALS.items()}
    assert health.diagnose(metrics) == []
    (sentence,) = health.diagnose(metrics | {"health/level2_children": 1.5})
    assert sentence.startswith("fragmented: hierarchy level2")


def test_the_tree_of_clusters_is_nested_and_as_large_as_its_images(tmp_path):
    path = with_clusters(tmp_path / "a")
    clusters = np.concatenate([LABELS, np.full((2, 5), -1)], axis=1)  # test images are in none
    arrays = {"clusters": clusters, "labels": np.append(TOP, np.zeros(5, int))}
    html = tree.picture(read_run(path), arrays)
    (trace,) = json.loads(re.search(r'application/json">(.*?)</script>', html)[1])["data"]
    found = dict(zip(trace["ids"], zip(trace["parents"], trace["values"], strict=True), strict=True))
    assert found["/0"] == ("", 30)
    assert sum(size for parent, size in found.values() if parent == "") == 60
    assert sorted(size for parent, size in found.values() if parent == "/0") == [5, 10, 15]
    assert trace["labels"][trace["ids"].index("/1")] == "class 1"
    assert tree.picture(read_run(path), {}) == ""
    assert tree.picture(read_run(path), {**arrays, "clusters": clusters[:, :3]}) == ""
