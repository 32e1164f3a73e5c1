"""Super-AND: its terms against slow references, the curriculum, every switch, resuming, and what it refuses."""

import json
import tempfile
from pathlib import Path

import contract
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysurl import distributed, recipe
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.method import Progress
from raysurl.methods.superand import SuperAND, and_loss, augmentation_loss, discover, unification_entropy
from raysurl.methods.superand.memory import CONSISTENCY, INSTANCE
from raysurl.testing.ranks import on_ranks
from raysurl.train import trainer

ROUNDS = {"rounds": 3, "epochs": 1}


def recipe_of(**changes):
    return contract.recipe_for("superand", **changes)


def follow(run, until):
    """Losses of the steps up to `until`, with what precedes each epoch."""
    losses = []
    while run.step < until:
        trainer.refresh_memory(run)
        end = (run.step // run.plan.steps_per_epoch + 1) * run.plan.steps_per_epoch
        losses += contract.steps(run, min(end, until) - run.step)
    return losses


# -------------------------------------------------------------------- the three terms


def slow_terms(logits, index, neighbours):
    """L_and and L_ue by loops over rows and classes, in float64."""
    logits, total, entropy = logits.double(), 0.0, 0.0
    for row in range(len(logits)):
        sample = row % len(index)
        p = torch.softmax(logits[row], 0)
        joined = [int(index[sample]), *(j for j in neighbours[sample].tolist() if j != INSTANCE)]
        total -= float(torch.log(sum(p[j] for j in joined)))
        q = torch.softmax(torch.cat([logits[row, : index[sample]], logits[row, index[sample] + 1 :]]), 0)
        entropy -= float((q * q.log()).sum())
    return total / len(logits), entropy / len(logits)


def test_and_loss_and_entropy_are_their_equations():
    generator = torch.Generator().manual_seed(1)
    logits = 10 * torch.randn(8, 20, generator=generator)
    index = torch.tensor([3, 19, 0, 7])
    anchors, neighbours = torch.tensor([19, 4, 7]), torch.tensor([[1, 2], [5, 6], [0, 19]])
    table = torch.full((20, 2), INSTANCE)
    table[anchors] = neighbours
    expected = slow_terms(logits, index, table[index])
    assert float(and_loss(logits, index, anchors, neighbours)) == pytest.approx(expected[0], rel=1e-5)
    assert float(unification_entropy(logits, index)) == pytest.approx(expected[1], rel=1e-5)
    none = and_loss(logits, index, anchors[:0], neighbours[:0])
    assert float(none) == pytest.approx(float(F.cross_entropy(logits, index.repeat(2))), rel=1e-5)


def test_terms_are_finite_for_one_sample_for_constant_and_for_extreme_logits():
    index = torch.tensor([1])
    for logits in (torch.randn(2, 3), torch.zeros(2, 3), torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4]])):
        logits.requires_grad_()
        loss = (
            and_loss(logits, index, torch.tensor([1]), torch.tensor([[0]]))
            + unification_entropy(logits, index)
            + augmentation_loss(logits, tau=0.1)
        )
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
    same = torch.ones(8, 5, requires_grad=True)  # all rows alike: P = 1/7 everywhere
    loss = augmentation_loss(same, tau=0.1)
    assert float(loss.detach()) == pytest.approx(-np.log(1 / 7) - 6 * np.log(6 / 7), rel=1e-5)
    with pytest.raises(InputError, match="two samples"):
        unification_entropy(torch.zeros(2, 1), torch.tensor([0]))


def test_augmentation_loss_of_a_part_against_all_adds_up_to_the_whole():
    logits = torch.randn(12, 9, generator=torch.Generator().manual_seed(2))
    whole = float(augmentation_loss(logits, tau=0.2))
    parts = []
    for first in (0, 2, 4):
        rows = torch.cat([logits[first : first + 2], logits[6 + first : 8 + first]])
        parts.append(
            float(augmentation_loss(rows, tau=0.2, everyone=logits, own=torch.tensor([first, first + 1])))
        )
    assert np.mean(parts) == pytest.approx(whole, rel=1e-6)


# -------------------------------------------------------------------- curriculum and switches


@pytest.mark.parametrize(
    ("init", "shares"), [("full", [0, 0.25, 0.5, 0.75, 1]), ("random", [0.2, 0.4, 0.6, 0.8, 1])]
)
def test_share_of_anchors_per_round(init, shares):
    config = SuperAND.Config(init=init)
    starts = [Progress(at * 20, 100, 10, rounds=5) for at in range(5)]
    assert [config.fraction(p) for p in starts] == pytest.approx(shares)
    of = "features" if init == "random" else "itself"
    assert [config.refresh(p) for p in starts] == [of if share > 0 else "no" for share in shares]
    assert config.refresh(Progress(30, 100, 10, rounds=5)) == "no"  # second epoch of a round


SWITCHES = [
    {"method": {"aug_loss": False}},
    {"method": {"unification": False}},
    {"method": {"and_loss": False}},
    {"method": {"unification_step": 0.3}},
    {"method": {"init": "instance"}},
    {"method": {"init": "random"}},
    {"method": {"own_class": "fill"}},
    {"method": {"remember": "mean"}},
    {"method": {"num_neighbours": 3}},
    {"method": {"discover_from": "encoder"}},
    {"method": {"compare": "embeddings"}},
    {"method": {"negative_weight": 2.0}},
    {"method": {"memory_momentum": 0.9}},
    {"method": {"aug_tau": 0.2}},
    {"encoder": {"name": "convnet", "sobel": True}},
]


@pytest.fixture(scope="module")
def default_losses(tmp_path_factory):
    run = contract.start(recipe_of(train=ROUNDS), tmp_path_factory.mktemp("default"))
    return follow(run, run.total_steps)


@pytest.mark.slow
@pytest.mark.parametrize("change", SWITCHES, ids=lambda c: json.dumps(next(iter(c.values()))))
def test_every_switch_changes_the_losses(change, default_losses, tmp_path):
    run = contract.start(recipe_of(train=ROUNDS, **change), tmp_path / "run")
    losses = follow(run, run.total_steps)
    assert len(losses) == 15
    assert np.isfinite(losses).all()
    assert losses != default_losses


@pytest.mark.parametrize("views", [1, 2])
def test_the_parents_switch_off_what_they_do_not_have(views, tmp_path):
    changes = {"aug_loss": False, "unification": False, "num_views": views}
    run = contract.start(recipe_of(method=changes), tmp_path / "run")
    ((micro_batches, _),) = run.loader.steps(0, 1)
    batch = run.loader.to_batch(micro_batches[0])
    assert len(batch.views) == views
    output = run.method(batch, run.memory.snapshot(slice(0, 16)), run.progress)
    v = run.method.embed(torch.cat(list(batch.views.values())))  # one set of batch-norm statistics
    logits = v @ run.memory.mirror.features.T / 0.1
    expected = F.cross_entropy(logits, batch.index.repeat(views))  # NPID
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(output.logs) == {"anchors", "neighbourhood", "health/std"}
    torch.testing.assert_close(output.push.keys, v[-16:].detach()[None])  # the last view alone is remembered


def test_sensible_refusals(tmp_path):
    with pytest.raises(InputError, match=r"method\.aug_loss=False is not valid: .*would collapse"):
        recipe_of(method={"and_loss": False, "aug_loss": False})
    with pytest.raises(InputError, match=r"method\.aug_loss=True is not valid: it compares two views"):
        recipe_of(method={"num_views": 1})
    with pytest.raises(InputError, match="num_neighbours=80 must be between 1 and 79"):
        contract.start(recipe_of(method={"num_neighbours": 80}), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.accumulate=2 would change the loss"):
        recipe_of(train={"batch_size": 16, "accumulate": 2})


@pytest.mark.slow
def test_resumed_in_the_middle_of_round_1_the_bank_the_neighbours_and_the_losses_are_the_same(tmp_path):
    settings = recipe_of(train={"rounds": 3, "epochs": 2})
    whole = contract.start(settings, tmp_path / "whole")
    expected = follow(whole, 26)
    part = contract.start(settings, tmp_path / "part")
    follow(part, 17)  # round 1 began at step 10, its second epoch at 15
    trainer.save(part)
    resumed = contract.start(settings, tmp_path / "part")
    for run in (resumed, part):
        run.memory.drain()
    ours, theirs = resumed.memory.record.memory, part.memory.record.memory
    assert (ours.neighbours[:, 0] != INSTANCE).sum() == 40
    assert torch.equal(ours.neighbours, theirs.neighbours)
    assert torch.equal(ours.bank.features, theirs.bank.features)
    assert torch.equal(resumed.memory.mirror.features, ours.bank.features)
    follow_on = contract.steps(resumed, 3) + follow(resumed, 26)
    assert follow_on == expected[17:]
    for run in (resumed, whole):
        run.memory.drain()
    assert torch.equal(resumed.memory.record.memory.bank.features, whole.memory.record.memory.bank.features)


def first_step_with_anchors(rank, world_size):
    """Loss, parameter change and memory of a step with neighbours and two trunks."""
    changes = {"encoder": {"name": "convnet", "sobel": True}, "train": ROUNDS, "method": {"init": "random"}}
    # with seed 0 a value lies within rounding (7e-8) of a ReLU's kink, which two ranks pass on the other side
    changes["seed"] = 1
    with tempfile.TemporaryDirectory() as folder:
        run = contract.start(recipe_of(**changes), Path(folder), rank=rank, world_size=world_size)
        trainer.refresh_memory(run)
        told = run.memory.snapshot(slice(None))["neighbours"]
        before = {k: v.detach().clone() for k, v in run.method.named_parameters()}
        ((micro_batches, _),) = run.loader.steps(0, 1)
        loss = distributed.mean(trainer.train_step(run, micro_batches)["loss"])
        change = torch.cat([(v.detach() - before[k]).flatten() for k, v in run.method.named_parameters()])
        features = run.memory.snapshot(slice(None))["features"].clone()
    return {"told": told, "loss": loss, "change": change, "features": features}


@pytest.mark.slow
def test_two_ranks_equal_one_with_neighbours_and_two_trunks():
    alone = first_step_with_anchors(0, 1)
    assert (alone["told"] != INSTANCE).any()
    assert (alone["told"] == INSTANCE).any()
    for result in on_ranks(first_step_with_anchors, 2, 2):
        assert torch.equal(result["told"], alone["told"])
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-5, atol=0)
        assert (result["change"] - alone["change"]).norm() <= 2e-5 * alone["change"].norm()
        torch.testing.assert_close(result["features"], alone["features"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_records_the_consistency_of_its_neighbours_and_evaluates_memory(tmp_path):
    settings = recipe_of(
        train=ROUNDS, encoder={"name": "convnet", "sobel": True}, eval={"features": "memory"}
    )
    contract.train(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line[CONSISTENCY]) for line in lines if CONSISTENCY in line]
    assert [step for step, _ in found] == [5, 10, 10, 15]  # rebuilt, end of round 1, rebuilt, end of round 2
    assert all(0 <= share <= 1 for _, share in found)
    assert found[1][1] == found[0][1]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert {"eval/knn_top1", "eval/backbone_knn_top1", "eval/untrained_knn_top1"} <= set(results)


# -------------------------------------------------------------------- recipes and behaviour


SUPERAND_RECIPES = [name for name in recipe.packaged_recipes() if name.startswith("superand/")]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPERAND_RECIPES)
def test_packaged_recipes_are_the_papers(name):
    found = recipe.load_recipe([f"recipe={name}", "data.path=somewhere"])
    assert found.train.batch_size == 128
    assert (found.train.optimizer.lr, found.train.optimizer.nesterov) == (0.03, True)
    assert (found.train.schedule.name, found.train.schedule.period) == ("step", "round")
    assert found.eval.features == "memory"
    unflipped = name in ("superand/svhn", "superand/and_cifar10")
    assert {p.flip for p in found.view_policies().values()} == ({0.0} if unflipped else {0.5})
    rounds = 1 if name.split("/")[1].startswith(("npid", "isif")) else 5
    assert (found.train.rounds, found.train.epochs) == (rounds, 200)
    encoder_of(found)


def neighbour_consistency(folder, seed, sign):
    """Share of the ten nearest in memory with the same digit, after three rounds of three epochs."""
    digits = {"view_1": "digits", "view_2": "digits"}
    settings = recipe_of(
        encoder={"name": "convnet"},
        method={"dim": 64, "unification_step": 1.5},
        data={"name": "digits", "limit": 600},
        views={"size": 8, "mean": [0.3] * 3, "std": [0.38] * 3, "policies": digits},
        train={"rounds": 3, "epochs": 3, "batch_size": 64, "optimizer": {"lr": 0.03, "lr_batch": 0}},
        seed=seed,
    )
    run = contract.start(settings, folder)
    weight = run.method.weight
    run.method.weight = lambda progress: sign * weight(progress)
    follow(run, run.total_steps)
    labels = torch.from_numpy(run.loader.source.labels)
    anchors, found = discover(run.memory.mirror.features, tau=0.1, fraction=1.0, num_neighbours=10)
    return float((labels[anchors, None] == labels[found]).float().mean())


@pytest.mark.slow
def test_raising_the_entropy_instead_of_lowering_it_makes_neighbours_less_consistent(tmp_path):
    lowered = neighbour_consistency(tmp_path / "lowered", 0, 1)
    raised = neighbour_consistency(tmp_path / "raised", 0, -1)
    assert lowered > 0.75  # 0.84 and 0.78
    assert raised < lowered - 0.02
