"""Super-AND against values computed by the authors' code."""

import numpy as np
import pytest
import torch
from golden import load

from raysurl import features
from raysurl.memory import Bank
from raysurl.method import Progress
from raysurl.methods.superand import SuperAND, and_loss, augmentation_loss, discover, unification_entropy
from raysurl.methods.superand.memory import CONSISTENCY, INSTANCE, NeighbourBank
from raysurl.recipe import Schedule
from raysurl.train import optim

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EPOCHS, STEPS = 200, 7


def golden(name):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in load(f"superand_{name}").items()}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_discovery_is_the_authors(size, at):
    g, name = golden("ans"), f"size{size}_round{at}"
    anchors, neighbours = discover(g["memory"], tau=float(g["T"]), fraction=0.25 * at, num_neighbours=size)
    assert torch.equal(anchors, g[f"{name}_anchors"])
    assert torch.equal(neighbours, g[f"{name}_neighbours"])
    position, expected = torch.full((40,), INSTANCE), g[f"{name}_position"]
    position[anchors] = torch.arange(len(anchors))
    assert torch.equal(position.clamp(min=-1), expected.clamp(min=-1))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_memory_tells_the_batch_its_neighbours_and_the_authors_consistency(size, at):
    g, name = golden("ans"), f"size{size}_round{at}"
    bank = Bank(40, 16, momentum=0.5, tau=float(g["T"]))
    bank.features = g["memory"].clone()
    fraction = SuperAND.Config().fraction
    memory = NeighbourBank(bank, num_neighbours=size, fraction=fraction, from_features=False)
    memory.refresh(None, Progress(at * 10, 50, 5, rounds=5))
    told = memory.answer(torch.arange(40), 0)["neighbours"]
    assert torch.equal(told[g[f"{name}_anchors"]], g[f"{name}_neighbours"])
    assert (told[g[f"{name}_instances"]] == INSTANCE).all()
    found = memory.health(g["labels"].numpy())[CONSISTENCY]
    assert found == pytest.approx(float(g[f"{name}_consistency"]), rel=1e-5)


@pytest.mark.parametrize("case", ["round0", "round2", "round4", "round2_size3", "round2_negM2"])
def test_losses_and_gradient_are_the_authors(case):
    g = golden("criterion")
    v = g["features"].clone().requires_grad_()
    logits = v @ g["memory"].T / float(g["T"])
    neighbourhood = and_loss(logits, g["indexes"], g[f"{case}_anchors"], g[f"{case}_neighbours"])
    weight = 2.0 if case.endswith("negM2") else 1.0
    augmentation = augmentation_loss(logits, tau=0.1, negative_weight=weight)
    (neighbourhood + augmentation).backward()
    torch.testing.assert_close(neighbourhood.detach(), g[f"{case}_and_part"], **CLOSE)
    torch.testing.assert_close(augmentation.detach(), g[f"{case}_aug_part"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close((neighbourhood + augmentation).detach(), g[f"{case}_total"], **CLOSE)
    # the authors' fp32 gradient is 7e-5 from the closed form in float64, of which ours is within 1e-5
    torch.testing.assert_close(v.grad, g[f"{case}_grad_features"], rtol=1e-3, atol=1e-4)
    exact = g["features"].double().requires_grad_()
    logits = exact @ g["memory"].double().T / float(g["T"])
    and_loss(logits, g["indexes"], g[f"{case}_anchors"], g[f"{case}_neighbours"]).backward()
    slow_augmentation(exact @ g["memory"].double().T, weight).backward()
    torch.testing.assert_close(v.grad, exact.grad.float(), **CLOSE)


def slow_augmentation(logits, weight):
    """The closed form, row by row."""
    r = logits / logits.norm(dim=1, keepdim=True)
    s, rows = torch.exp(r @ r.detach().T / 0.1), len(r)
    terms = []
    for i in range(rows):
        positive = (i + rows // 2) % rows
        negatives = [j for j in range(rows) if j not in (i, positive)]
        total = s[i, positive] + weight * s[i, negatives].sum()
        terms.append(
            torch.log(s[i, positive] / total) + weight * torch.log(1 - s[i, negatives] / total).sum()
        )
    return -torch.stack(terms).mean()


def test_unification_entropy_is_the_authors_with_fill_and_equation_11_without():
    g = golden("ue")
    v = g["features"].clone().requires_grad_()
    logits = v @ g["memory"].T / float(g["T"])
    torch.testing.assert_close(logits.detach(), g["outputs"], **CLOSE)
    filled = unification_entropy(logits, g["indexes"], fill=float(g["uemask_fill"]))
    filled.backward()
    torch.testing.assert_close(filled.detach(), g["official_loss_mean_over_2B"], **CLOSE)
    torch.testing.assert_close(v.grad, g["grad_features"], **CLOSE)
    exact = unification_entropy(logits.detach(), g["indexes"])
    torch.testing.assert_close(exact, g["exact_eq11_mean_f64"].float(), **CLOSE)


def test_sobel_is_the_authors():
    g = golden("sobel")
    torch.testing.assert_close(features.sobel(g["x"]), g["out"], **CLOSE)


def test_learning_rate_and_weight_of_a_round_are_the_authors():
    g = golden("schedule")
    schedule = Schedule(name="step", warmup_epochs=0, period="round")
    weight = SuperAND.weight
    method = type("Stub", (), {"config": SuperAND.Config()})()
    for at in range(3):
        for epoch in range(EPOCHS):
            for step in (0, STEPS - 1):
                progress = Progress(
                    ((at * EPOCHS) + epoch) * STEPS + step, 3 * EPOCHS * STEPS, STEPS, rounds=3
                )
                lr = optim.learning_rate(0.03, schedule, progress)
                assert lr == pytest.approx(float(g["epoch_lr"][epoch]), rel=1e-6)
                assert weight(method, progress) == pytest.approx(float(g["epoch_w"][epoch]), abs=1e-9)
