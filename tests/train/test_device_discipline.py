"""No step waits for the GPU, and none mixes devices: every method on tensors that claim to be on one."""

import contract
import pytest
import torch
from pretend_cuda import CUDA, pretended

from raysurl import method
from raysurl.runtime import LocalRuntime
from raysurl.train import trainer
from raysurl.views import POLICIES

# What a step may wait for: memory's keys, which the record's thread fetches. Nothing else.
ALLOWED = {
    "table.py": "a teacher's table may be larger than the device, and is read on the host",
}


def start(recipe, run_dir):
    run_dir.mkdir()
    return trainer.start(recipe, LocalRuntime(CUDA), *contract.sources(recipe), run_dir)


def recipe_for(name, **changes):
    train = {"cuda_graph": False, "batch_size": 16, "clip": 1.0} | changes.pop("train", {})
    return contract.recipe_for(name, train=train, **changes)


def take_steps(run, seen, count=2):
    """The first step makes constants and the optimizer's state; those after it are watched."""
    run.model.train()
    for micro_batches, _ in run.loader.steps(run.step, run.step + 1 + count):
        trainer.train_step(run, micro_batches)
        seen.watched = True
        run.step += 1
    seen.watched = False
    return [note for note in seen.notes if not any(name in note for name in ALLOWED)]


@pytest.mark.parametrize("name", contract.slow_but(["genurl", "superand"], method.available()))
def test_a_step_neither_waits_nor_mixes(name, tmp_path, monkeypatch):
    with pretended(monkeypatch) as seen:
        assert take_steps(start(recipe_for(name), tmp_path / "run"), seen) == []
        assert seen.kernels["memcpy"] <= 5 * 2  # in each step the views' block, memory's answer, its keys


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "adam", "adamw"])
def test_an_optimizer_neither_waits_nor_mixes(optimizer, tmp_path, monkeypatch):
    with pretended(monkeypatch) as seen:
        recipe = recipe_for("simsiam", train={"optimizer": {"name": optimizer, "lr": 0.01, "lr_batch": 0}})
        assert take_steps(start(recipe, tmp_path / "run"), seen) == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", contract.slow_but(["contrastive"], POLICIES))
def test_views_neither_wait_nor_mix(policy, tmp_path, monkeypatch):
    views = {"size": 16, "policies": {"view_1": {"base": policy, "size": 16}}}
    with pretended(monkeypatch) as seen:
        assert take_steps(start(recipe_for("simclr", views=views), tmp_path / "run"), seen, count=1) == []


@pytest.mark.slow
def test_views_from_workers_are_fetched_without_a_wait(tmp_path, monkeypatch):
    with pretended(monkeypatch) as seen:
        recipe = recipe_for("simclr", views={"size": 8, "device": "workers"})
        assert take_steps(start(recipe, tmp_path / "run"), seen) == []


@pytest.mark.slow
def test_rcl_with_clusters_neither_waits_nor_mixes(tmp_path, monkeypatch):
    with pretended(monkeypatch) as seen:
        run = start(recipe_for("rcl", method={"warmup_epochs": 0}), tmp_path / "run")
        trainer.refresh_memory(run)
        assert take_steps(run, seen) == []


@pytest.mark.slow
def test_a_whole_run_goes_through(tmp_path, monkeypatch):
    with pretended(monkeypatch):
        recipe = recipe_for(
            "ressl", eval={"every_epochs": 1, "protocols": ["knn", "linear"], "linear_epochs": 1}
        )
        (tmp_path / "run").mkdir()
        trainer.train(recipe, LocalRuntime(CUDA), *contract.sources(recipe), tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["item", "mask", "cpu", "stack", "blocking"])
def test_a_planted_fault_is_found_with_its_line(planted, tmp_path, monkeypatch):
    with pretended(monkeypatch) as seen:
        run = start(recipe_for("simsiam"), tmp_path / "run")
        cls = type(run.method)
        original = cls.forward

        def faulty(self, *args):
            out = original(self, *args)
            loss = out.loss
            faults = {
                "item": lambda: loss.item(),
                "mask": lambda: args[0].index[args[0].index > 3],
                "cpu": lambda: args[0].views["view_1"] + torch.ones(16, 3, 8, 8),
                "stack": lambda: torch.stack([loss, torch.ones(())]),
                "blocking": lambda: torch.ones(4).to(loss.device),
            }
            faults[planted]()
            return out

        monkeypatch.setattr(cls, "forward", faulty)
        found = take_steps(run, seen)
    assert found, planted
    assert all("step.py" in note for note in found)
