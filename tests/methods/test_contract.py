"""What holds for every method: this file names none, it runs over all that are found."""

import dataclasses
import tempfile
from pathlib import Path

import contract
import pytest
import torch
from ranks import on_ranks
from torch.nn.modules.batchnorm import _BatchNorm

from raysurl import distributed, method
from raysurl.nets.dropping import DropPath
from raysurl.nets.ema import MomentumTeacher
from raysurl.train import trainer

METHODS = method.available()
every_method = pytest.mark.parametrize("name", METHODS)


def first_batch(run):
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    return run.loader.to_batch(micro_batches[0])


@every_method
def test_the_loss_is_finite_and_its_gradient_reaches_the_encoder_and_never_a_teacher(name, tmp_path):
    run = contract.start(contract.recipe_for(name), tmp_path / "run")
    output = run.model(first_batch(run), run.memory.snapshot(slice(None)) if run.memory else {}, run.progress)
    assert torch.isfinite(output.loss)
    assert not output.loss.isnan()
    output.loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in run.method.encoder.parameters() if p.ndim > 1
    )
    teachers = [m for m in run.method.modules() if isinstance(m, MomentumTeacher)]
    assert all(p.grad is None and not p.requires_grad for t in teachers for p in t.parameters())
    assert all(not value.requires_grad for value in output.logs.values())
    assert output.push is None or not output.push.keys.requires_grad


@pytest.mark.parametrize("name", contract.slow_but(contract.PAPERS, METHODS))
def test_a_vit_and_a_convnext_train_without_a_batch_norm_and_their_teachers_drop_nothing(name, tmp_path):
    for kind, network in contract.BACKBONES.items():
        recipe = contract.recipe_for(name, encoder=network | {"drop_path": 0.2, "sobel": kind == "vit"})
        run = contract.start(recipe, tmp_path / kind)
        encoder = run.method.encoder
        assert not any(isinstance(m, _BatchNorm) for m in encoder.modules())
        before = {k: v.clone() for k, v in encoder.named_parameters()}
        for loss in contract.steps(run, 2):
            assert torch.isfinite(torch.tensor(loss))
        for key, value in encoder.named_parameters():
            frozen = recipe.method.freezes_patches and "patch_embed" in key
            assert value.requires_grad is not frozen
            assert value.ndim == 1 or torch.equal(value, before[key]) is frozen, key
        assert any(m.training for m in encoder.modules() if isinstance(m, DropPath))
        teachers = [m for m in run.method.modules() if isinstance(m, MomentumTeacher)]
        assert not any(m.training for t in teachers for m in t.modules() if isinstance(m, DropPath))
        assert all(m.training for t in teachers for m in t.net.modules() if isinstance(m, _BatchNorm))


@pytest.mark.slow
@pytest.mark.parametrize("name", contract.slow_but(contract.PAPERS, METHODS))
def test_a_restored_state_gives_the_same_next_losses(name, tmp_path):
    recipe = contract.recipe_for(name)
    run = contract.start(recipe, tmp_path / "run")
    contract.steps(run, 3)
    trainer.save(run)
    copy = contract.start(recipe, tmp_path / "run")
    assert copy.step == 3
    assert contract.steps(copy, 2) == contract.steps(run, 2)


@pytest.mark.parametrize("name", contract.slow_but(contract.PAPERS, METHODS))
def test_twenty_steps_on_one_batch_lower_the_loss(name, tmp_path):
    run = contract.start(contract.recipe_for(name), tmp_path / "run")
    batch, progress = first_batch(run), dataclasses.replace(run.progress, step=5)
    snapshot = {k: v.clone() for k, v in run.memory.snapshot(slice(None)).items()} if run.memory else {}
    optimizer = torch.optim.SGD(
        [p for p in run.method.parameters() if p.requires_grad], lr=0.02, momentum=0.9
    )
    losses = []
    for _ in range(20):
        loss = run.model(batch, snapshot, progress).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02 * abs(losses[0])


@pytest.mark.parametrize("name", contract.slow_but(["rcl", "superand"], METHODS))
def test_resumed_in_the_middle_of_an_epoch_equals_uninterrupted(name, tmp_path):
    recipe = contract.recipe_for(name)
    whole = contract.start(recipe, tmp_path / "whole")
    expected = contract.steps(whole, 4)
    part = contract.start(recipe, tmp_path / "part")
    contract.steps(part, 2)
    trainer.save(part)
    resumed = contract.start(recipe, tmp_path / "part")
    assert contract.steps(resumed, 2) == expected[2:]
    for ours, theirs in zip(
        resumed.method.state_dict().values(), whole.method.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def one_step(rank, names, world_size):
    """Loss, parameter change, running statistics and memory after the first step of each method."""
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            run = contract.start(contract.recipe_for(name), Path(folder), rank=rank, world_size=world_size)
            before = {k: v.clone() for k, v in run.method.named_parameters()}
            ((micro_batches, _),) = run.loader.steps(0, 1)
            logs = trainer.train_step(run, micro_batches)
            results[name] = {
                "loss": distributed.mean(logs["loss"]),
                "change": {k: v.detach() - before[k].detach() for k, v in run.method.named_parameters()},
                "rounding": {k: torch.finfo(v.dtype).eps * v.detach().norm() for k, v in before.items()},
                "buffers": {k: v.clone() for k, v in run.method.named_buffers()},
                "memory": {k: v.clone() for k, v in run.memory.snapshot(slice(None)).items()}
                if run.memory
                else {},
            }
    return results


@pytest.fixture(scope="module")
def on_one_and_two_ranks(request):
    """All methods of this session in one pair of processes."""
    tests = [item for item in request.session.items if "on_one_and_two_ranks" in item.fixturenames]
    names = [item.callspec.params["name"] for item in tests]
    return one_step(0, names, 1), on_ranks(one_step, 2, names, 2)


@pytest.mark.parametrize(
    "name", contract.slow_but(["rcl", "ressl"], [*METHODS, "mocov3/vit", "ressl/convnext"])
)
def test_two_ranks_equal_one_in_loss_gradient_and_memory(name, on_one_and_two_ranks):
    alone, ranks = on_one_and_two_ranks[0][name], [r[name] for r in on_one_and_two_ranks[1]]
    scale = max(float(change.detach().abs().max()) for change in alone["change"].values())
    assert scale > 0
    for result in ranks:
        torch.testing.assert_close(
            result["loss"], alone["loss"], rtol=1e-5, atol=5e-7
        )  # near 0: its terms' rounding
        for key, change in alone["change"].items():
            error = (result["change"][key] - change).norm()
            allowed = 1e-5 * change.norm() + 1e-6 * scale * change.numel() ** 0.5
            assert error <= allowed + alone["rounding"][key], (
                key
            )  # a change is a difference of fp32 parameters
        for part in ("memory", "buffers"):
            for key, value in alone[part].items():
                torch.testing.assert_close(result[part][key], value, rtol=1e-4, atol=1e-5)
    for key, change in ranks[0]["change"].items():
        assert torch.equal(change, ranks[1]["change"][key])
