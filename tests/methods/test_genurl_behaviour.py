"""GenURL on digits in a few seconds: what the paper's cosine and its σ = 1 do to the embedding."""

import json

import pytest

from raysurl import metrics
from raysurl.recipe import recipe_from
from raysurl.run import pretrain

CASES = {
    "static": {"target": "static"},
    "literal": {"target": "static", "distance": "literal"},
    "wide": {"target": "dynamic", "sigma": 1.0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Case -> (last step's logs, results) after ten epochs."""
    found = {}
    for name, method in CASES.items():
        folder = tmp_path_factory.mktemp("genurl") / name
        pretrain(
            recipe_from(
                {
                    "method": {"name": "genurl", "hidden": 512, "dim": 64} | method,
                    "data": {"name": "digits"},
                    "views": {
                        "size": 8,
                        "mean": [0.305] * 3,
                        "std": [0.376] * 3,
                        "policies": {"view_1": "digits", "view_2": "digits"},
                    },
                    "encoder": {"name": "convnet", "channels": [16, 32, 64]},
                    "train": {
                        "epochs": 10,
                        "batch_size": 128,
                        "optimizer": {"name": "adam", "lr": 2e-3, "lr_batch": 0, "weight_decay": 0},
                        "schedule": {"warmup_epochs": 0},
                    },
                    "eval": {"every_epochs": 0, "protocols": ["knn"], "baselines": False},
                    "log": {"tensorboard": False},
                    "runtime": "local",
                    "output": str(folder),
                }
            )
        )
        steps = [line for line in metrics.read(folder / "metrics.jsonl") if "train/loss" in line]
        found[name] = steps[-1], json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_a_distance_that_is_a_similarity_learns_far_less(runs):
    accuracy = {name: results["metrics"]["eval/knn_top1"] for name, (_, results) in runs.items()}
    assert accuracy["static"] > 90
    assert accuracy["literal"] < accuracy["static"] - 10


@pytest.mark.slow
def test_a_wide_kernel_with_the_dynamic_target_collapses_the_embedding_and_the_report_says_so(runs):
    assert runs["wide"][0]["health/std"] < 0.1
    assert runs["static"][0]["health/std"] > 0.5
    assert "collapsed in training" in " ".join(runs["wide"][1]["health"])
    assert not [sentence for sentence in runs["static"][1]["health"] if "collapsed" in sentence]
