"""One trial in this process: how it ends, what it leaves, how it goes on."""

import json

import pytest
import torch

from raysurl import metrics
from raysurl.data.names import open_samples
from raysurl.errors import out_of_memory
from raysurl.recipe import load_recipe
from raysurl.sweep.space import Stop
from raysurl.sweep.trial import (
    CollapsedError,
    Outcome,
    Watch,
    in_process,
    read_outcome,
    run_trial,
    write_outcome,
)
from raysurl.train import local, trainer

SETTINGS = (
    "method.hidden=32", "method.dim=16", "method.queue_size=128", "data.limit=128", "train.batch_size=16",
    "train.epochs=3", "train.schedule.warmup_epochs=1", "eval.every_epochs=0", "eval.protocols=[knn]",
    "eval.baselines=false", "log.tensorboard=false", "runtime=local", "checkpoint.every_steps=3",
)  # fmt: skip
NEVER = Stop(after=1.0)


def recipe_of(*changes):
    return load_recipe([*SETTINGS, *changes])


@pytest.fixture(scope="module")
def sources():
    data = recipe_of().data
    return local.open_sources(recipe_of(), *(open_samples(data, split, 0) for split in ("train", "eval")))


def run(folder, sources, *changes, stop=NEVER, report=None):
    recipe = recipe_of(*changes)
    train = in_process(lambda: sources, torch.device("cpu"))
    return run_trial(recipe, folder, train, stop=stop, report=report)


def losses(folder):
    return [line["train/loss"] for line in metrics.read(folder / "metrics.jsonl") if "train/loss" in line]


@pytest.mark.slow
def test_a_finished_trial_leaves_its_outcome_and_is_never_run_again(sources, tmp_path, monkeypatch):
    seen = []
    outcome = run(tmp_path, sources, "eval.every_epochs=1", report=seen.append)
    assert outcome.state == "finished"
    assert outcome.metrics["eval/knn_top1"] > 20
    assert read_outcome(tmp_path) == outcome
    assert outcome.epochs == 3
    assert not (tmp_path / "checkpoints").exists()
    assert [s["epoch"] for s in seen] == [1, 2]  # the last epoch is told by the outcome
    assert all(s["evaluated"] and "health/rankme" in s for s in seen)
    monkeypatch.setattr(trainer, "train", None)
    assert run(tmp_path, sources, "eval.every_epochs=1") == outcome


@pytest.mark.slow
def test_a_trial_does_not_depend_on_the_one_its_process_ran_before(sources, tmp_path):
    run(tmp_path / "a", sources)
    torch.rand(100)
    run(tmp_path / "other", sources, "method.tau_teacher=0.06", "seed=5")
    run(tmp_path / "b", sources)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


class KilledError(BaseException):
    """What a killed process looks like from inside: nothing after it runs."""


@pytest.mark.slow
def test_an_interrupted_trial_goes_on_from_its_own_checkpoint(sources, tmp_path, monkeypatch):
    run(tmp_path / "whole", sources)
    step, steps = trainer.train_step, []

    def dies(run_, batches):
        steps.append(run_.step)
        if run_.step == 13:
            raise KilledError
        return step(run_, batches)

    monkeypatch.setattr(trainer, "train_step", dies)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", sources)
    assert read_outcome(tmp_path / "cut") is None
    monkeypatch.setattr(
        trainer, "train_step", lambda run_, batches: (steps.append(run_.step), step(run_, batches))[1]
    )
    steps.clear()
    assert run(tmp_path / "cut", sources).state == "finished"
    assert steps[0] == 12
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_collapsed_and_diverged_trials_end_early_and_say_so(sources, tmp_path):
    dead = (
        "method.predictor=false",
        "method.head_norm=false",
        "method.tau_student=0.1",
        "method.tau_teacher=0.1",
    )
    outcome = run(tmp_path / "c", sources, *dead, "train.epochs=12", stop=Stop(after=0.3, patience=2))
    assert outcome.state == "collapsed"
    assert outcome.reason.startswith("ended after epoch")
    assert outcome.epochs < 12
    outcome = run(tmp_path / "d", sources, "train.optimizer.lr=1.0e+30", "train.schedule.warmup_epochs=0")
    assert outcome.state == "diverged"
    assert "not finite" in outcome.reason


@pytest.mark.parametrize(
    ("spreads", "ended"),
    [
        ([0.27, 0.27, 0.27], True),
        ([0.27, 0.21, 0.24, 0.26, 0.28, 0.30], False),  # a warm-up passes through it and comes out
        ([0.27, 0.6, 0.17, 0.17, 0.17], True),
        ([0.27, 0.27, 0.6, 0.27, 0.27], False),  # not in a row
    ],
)
def test_only_a_collapse_that_lasts_ends_a_trial(spreads, ended):
    watch = Watch(20, Stop(after=0.1, patience=3), report=None)

    def feed():
        for epoch, spread in enumerate(spreads, start=1):
            watch({"epoch": epoch, "step": epoch}, {"step": epoch, "train/loss": 1.0, "health/std": spread})

    if ended:
        with pytest.raises(CollapsedError, match=f"ended after epoch {len(spreads)} of 20: collapsed"):
            feed()
    else:
        feed()


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_with_its_reason(sources, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: 1 TB"
        )

    monkeypatch.setattr(trainer, "train", fails)
    outcome = run(tmp_path, sources)
    assert outcome.state == "failed"
    assert outcome.reason.startswith("out of memory: ")
    monkeypatch.undo()
    assert (
        run(tmp_path, sources, "train.batch_size=64", "train.epochs=1").state == "finished"
    )  # failed trials are tried again


def test_out_of_memory_is_told_from_other_errors():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_damaged_outcomes_and_torn_lines_are_passed_over(tmp_path):
    assert read_outcome(tmp_path) is None
    for damaged in ('{"state": "fin', '{"state": [1]}', '{"state": "finished", "metrics": null}', "[]"):
        (tmp_path / "trial.json").write_text(damaged)
        assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, Outcome("pruned", "x"))
    assert json.loads((tmp_path / "trial.json").read_text())["state"] == "pruned"
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 0, "train/loss": 1.0}\n{"step": 1, "train/loss": 0.5, "event": "x"}\n{"step": 2, "tra'
    )
    assert metrics.latest_step(path) == {"step": 1, "train/loss": 0.5}
