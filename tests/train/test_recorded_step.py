"""A recorded step is the eager step: the same losses, through every schedule and every change of its form."""

import contract
import pytest
import torch
from replaying import ReplayedGraph

from raysurl import method
from raysurl.method import NotRecordableError, Progress, Recorded
from raysurl.train.step import WARM_STEPS, RecordedStep

EAGER = {"crd"}  # draws on the host; whoever joins it says why in `runs_eagerly`
CHANGING = {
    "ressl": {"infonce_warmup_epochs": 1.3, "momentum_schedule": "cosine"},
    "swav": {"frozen_steps": 7, "queue_epoch": 1},
    "superand": {"unification_milestones": (0.4, 0.8), "init": "instance"},
}  # phases that begin in the middle of the compared steps
STEPS = 20


def recorded(run):
    """Give a run on the CPU the recorded step, and the list of what it says."""
    said = []
    for group in run.optimizer.param_groups:
        group["fused"] = True  # as on a GPU: the learning rate may be a tensor
    run.one_step = RecordedStep(run.one_step, said.append, ReplayedGraph)
    return said


def recipe_for(name):
    train = {"epochs": 5, "schedule": {"name": "cosine", "warmup_epochs": 1}}
    if name == "superand":
        train |= {"epochs": 1, "rounds": 5}
    train["optimizer"] = {"lr": 0.02, "lr_batch": 0, "momentum": 0.9}
    return contract.recipe_for(name, train=train, method=CHANGING.get(name, {}))


RECORDED = [name for name in method.available() if name not in EAGER]


@pytest.mark.slow
@pytest.mark.parametrize("name", contract.slow_but(["ressl", "superand"], RECORDED))
def test_replayed_losses_are_those_of_the_eager_step(name, tmp_path):
    eager = contract.start(recipe_for(name), tmp_path / "eager")
    run = contract.start(recipe_for(name), tmp_path / "recorded")
    said = recorded(run)
    expected, found = contract.steps(eager, STEPS), contract.steps(run, STEPS)
    assert said, "nothing was recorded"
    assert all("recorded" in sentence for sentence in said), said
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)
    for (key, ours), theirs in zip(
        run.method.state_dict().items(), eager.method.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=2e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}"
        )
    if name in CHANGING:
        assert len(said) > 1, "a change of form is recorded anew"


@pytest.mark.parametrize("name", sorted(EAGER))
def test_a_method_that_cannot_be_recorded_says_why(name, tmp_path):
    assert contract.start(recipe_for(name), tmp_path / "run").method.runs_eagerly()


@pytest.mark.parametrize("where", ["forward", "after_step"])
def test_a_step_that_reads_the_progress_is_refused_and_runs_eagerly(where, tmp_path, monkeypatch):
    recipe = contract.recipe_for("byol")
    eager, run = (contract.start(recipe, tmp_path / name) for name in ("eager", "recorded"))
    cls = type(run.method)
    original = getattr(cls, where)

    def reading(self, *args):
        if where == "after_step":
            assert args[-1].step >= 0
            return original(self, *args)
        result = original(self, *args)
        return type(result)(result.loss * (1 + 0.1 * args[-1].step), result.logs, result.push)

    monkeypatch.setattr(cls, where, reading)
    said = recorded(run)
    for group in eager.optimizer.param_groups:
        group["fused"] = True
    assert contract.steps(run, 6) == contract.steps(eager, 6)
    assert "progress.step" in said[0]
    assert len(said) == 1


def test_a_wait_inside_the_step_is_refused_and_runs_eagerly(tmp_path, monkeypatch):
    recipe = contract.recipe_for("simsiam")
    eager, run = (contract.start(recipe, tmp_path / name) for name in ("eager", "recorded"))
    cls = type(run.method)
    original = cls.forward

    def waiting(self, *args):
        result = original(self, *args)
        assert float(result.loss) < 1e9
        return result

    monkeypatch.setattr(cls, "forward", waiting)
    said = recorded(run)
    for group in eager.optimizer.param_groups:
        group["fused"] = True
    found = contract.steps(run, WARM_STEPS + 4)
    assert found == pytest.approx(contract.steps(eager, WARM_STEPS + 4), rel=1e-4, abs=1e-5)
    assert "capturing" in said[0]


def test_what_a_recorded_step_may_not_read_raises():
    with pytest.raises(NotRecordableError, match=r"progress\.epoch"):
        _ = Recorded({}, None).epoch
    assert all(hasattr(Progress(0, 1, 1), name) for name in ("step", "epoch", "round"))
