"""A run is examined while it trains: planted faults are named, and end the run or the trial where that is asked for."""

import json
from unittest import mock

import contract
import numpy as np
import pytest
import torch

from raysurl import build, health, method, metrics, sampler
from raysurl.errors import UnhealthyError
from raysurl.memory import Queue
from raysurl.sweep.space import Stop
from raysurl.sweep.trial import PrunedError, Watch
from raysurl.train import examination, trainer

QUICK = {"protocols": ("knn",), "baselines": False}


def recipe_for(method="ressl", epochs=5, momentum=None, **changes):
    if momentum is not None:
        changes["method"] = {"momentum": momentum}
    train = {"epochs": epochs, "optimizer": {"lr": 0.005, "lr_batch": 0}} | changes.pop("train", {})
    evaluation = QUICK | changes.pop("eval", {})
    return contract.recipe_for(method, train=train, eval=evaluation, **changes)


def examined(recipe, run_dir):
    """The results of a run, and its findings by their kind."""
    contract.train(recipe, run_dir)
    results = json.loads((run_dir / "results.json").read_text())
    return results, {said.partition(":")[0]: said for said in results["health"]}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("healthy") / "run"
    return run_dir, *examined(recipe_for(), run_dir)


def test_a_healthy_run_is_measured_and_nothing_is_said(healthy):
    run_dir, results, found = healthy
    assert found == {}
    signals = results["signals"]
    assert 0.001 < signals["health/update_share"] < health.STEEP_UPDATE
    assert 0.01 < signals["health/teacher_motion"] < 1
    assert signals["health/queue_lag"] == 0  # 48 keys are renewed in three of the five steps
    assert signals["health/batch_mix"] == pytest.approx(1, abs=0.1)
    assert signals["health/input_std"] == pytest.approx(1, abs=0.1)
    lines = metrics.read(run_dir / "metrics.jsonl")
    assert sum("health/update_share" in line for line in lines) == 5
    assert all(line["health/grad_norm"] > 0 for line in lines if "train/loss" in line)
    assert 0 < results["metrics"]["health/alignment"] < 2


ALONE = [name for name in method.available() if contract.recipe_for(name).method.learns_from() == "no"]


STEEPER = ("barlow", "simclr", "vicreg")  # whose loss is ten times as steep at the start


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALONE if name != "ressl"])
def test_of_every_other_methods_healthy_run_nothing_is_said_either(name, tmp_path):
    rate = 0.0005 if name in STEEPER else 0.005
    recipe = recipe_for(name, train={"optimizer": {"lr": rate, "lr_batch": 0}})
    results, found = examined(recipe, tmp_path / "run")
    assert found == {}
    assert 0.001 < results["signals"]["health/update_share"] < health.STEEP_UPDATE


# -------------------------------------------------------------------- planted faults


class Changed(torch.nn.Module):
    """An encoder whose features are all alike, or lie on a plane."""

    def __init__(self, net, kind):
        super().__init__()
        self.net, self.dim, self.kind = net, net.dim, kind
        self.plane = torch.randn(2, net.dim, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        out = self.net(x)
        return 0 * out + 1 if self.kind == "constant" else out @ self.plane.T @ self.plane


def changed(kind):
    original = build.encoder_of
    return mock.patch.object(build, "encoder_of", lambda *given: Changed(original(*given), kind))


def in_order(readable, *ignored):
    """Digits of one class after the other."""
    recipe = recipe_for()
    labels = contract.sources(recipe)[0].labels
    return readable[np.argsort(labels[readable], kind="stable")]


PLANTED = {
    "collapsed": (lambda: changed("constant"), {}),
    "dimensional collapse": (lambda: changed("plane"), {}),
    "dead queue": (lambda: mock.patch.object(Queue, "push", return_value=None), {}),
    "teacher does not move": (None, {"momentum": 1.0}),
    "sorted batches": (lambda: mock.patch.object(sampler, "epoch_order", in_order), {}),
    "wrong normalisation": (None, {"views": {"size": 8, "mean": [77.0] * 3, "std": [97.0] * 3}}),
    "steps too large": (None, {"train": {"optimizer": {"lr": 5.0, "lr_batch": 0}}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_named_with_its_cause_and_a_setting(kind, tmp_path):
    plant, changes = PLANTED[kind]
    with plant() if plant else mock.patch.object(trainer, "examine", trainer.examine):
        _, found = examined(recipe_for(**changes), tmp_path / "run")
    assert kind in found
    assert "likely cause: " in found[kind]
    assert "try " in found[kind]


def test_the_pixels_of_the_data_are_what_is_to_be_tried(tmp_path):
    recipe = recipe_for(views={"size": 8, "mean": [0.0] * 3, "std": [1 / 255] * 3})
    source = contract.sources(recipe)[0]
    found = examination.inputs(recipe, source)
    (said,) = health.diagnose(found)
    mean, std = found["health/pixel_mean"], found["health/pixel_std"]
    assert (mean, std) == pytest.approx((0.3, 0.38), abs=0.02)
    assert f"views.mean=[{mean:.3f}, {mean:.3f}, {mean:.3f}] views.std=[{std:.3f}" in said


def test_without_labels_an_order_without_a_shuffle_is_seen_by_its_positions(tmp_path):
    run = contract.start(recipe_for("simclr"), tmp_path / "run")
    source = mock.Mock(labels=None)
    assert examination.batches(run.plan, source, 1)["health/batch_mix"] > 0.8
    with mock.patch.object(sampler, "epoch_order", lambda readable, *ignored: readable):
        assert examination.batches(run.plan, source, 2)["health/batch_mix"] < 0.3


# -------------------------------------------------------------------- what is done about it


@pytest.mark.slow
def test_a_run_stops_where_a_finding_lasts_and_goes_on_where_it_is_only_said(tmp_path):
    sick = {"views": {"size": 8, "mean": [77.0] * 3, "std": [97.0] * 3}}
    with pytest.raises(UnhealthyError, match=r"after epoch 3 of 5 \(log.on_finding=stop\): wrong norm"):
        contract.train(recipe_for(log={"on_finding": "stop", "tensorboard": False}, **sick), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    _, found = examined(recipe_for(**sick), tmp_path / "run")
    assert "wrong normalisation" in found
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    said = [line for line in lines if str(line.get("event", "")).startswith("finding: wrong normalisation")]
    assert len(said) == 1
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(25))


def test_a_trial_is_pruned_where_that_is_asked_for():
    for prunes in (True, False):
        seen = []
        watch = Watch(5, Stop(), seen.append, prunes=prunes)
        report = {"epoch": 3, "step": 15, "finding": "dead queue: it is."}
        if prunes:
            with pytest.raises(PrunedError, match="ended after epoch 3 of 5: dead queue"):
                watch(report, {})
        else:
            watch(report, {})
            assert "finding" not in seen[0]
        assert "finding" not in watch.metrics


@pytest.mark.slow
def test_a_run_that_is_gone_on_with_is_examined_as_if_nothing_had_been(healthy, tmp_path):
    """Between two looks: the next one compares with the same state of weights and memory."""
    run = contract.start(recipe_for(), tmp_path / "run")
    trainer.train_epoch(run)
    trainer.after_epoch(run, 1)
    contract.steps(run, 2)
    run.block.flush()
    trainer.save(run)
    run.writer.wait()
    contract.train(recipe_for(), tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["signals"] == healthy[1]["signals"]
