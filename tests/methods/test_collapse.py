"""ReSSL's Table 2 on real data in half a minute: without a predictor, τ_s = 0.1, a flat target collapses."""

import json

import pytest

from raysurl import metrics
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

SETTINGS = (
    "runtime=local", "method.predictor=false", "method.head_norm=false", "method.tau_student=0.1",
    "train.epochs=12", "train.schedule.warmup_epochs=2", "eval.every_epochs=0", "eval.protocols=[knn]",
    "eval.baselines=false", "log.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """τ_t -> (last step's logs, results) of the digits recipe with the conference head and no predictor."""
    found = {}
    for tau in (0.1, 0.04):
        folder = tmp_path_factory.mktemp("collapse") / str(tau)
        pretrain(load_recipe([*SETTINGS, f"method.tau_teacher={tau}", f"output={folder}"]))
        steps = [line for line in metrics.read(folder / "metrics.jsonl") if "train/loss" in line]
        found[tau] = steps[-1], json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_as_flat_a_target_as_the_student_collapses_and_the_health_metrics_say_so(runs):
    last, results = runs[0.1]
    assert 1 - last["health/std"] ** 2 > 0.9  # mean cosine between different images
    assert last["health/teacher_entropy"] > 0.95
    said = " ".join(results["health"])
    assert "collapsed in training" in said
    assert "teacher target is flat" in said


@pytest.mark.slow
def test_a_sharpened_target_does_not_collapse_and_learns_more(runs):
    last, results = runs[0.04]
    assert 1 - last["health/std"] ** 2 < 0.3
    assert last["health/teacher_entropy"] < 0.7
    assert not [sentence for sentence in results["health"] if "collapsed" in sentence or "flat" in sentence]
    assert results["metrics"]["eval/knn_top1"] > runs[0.1][1]["metrics"]["eval/knn_top1"] + 2
