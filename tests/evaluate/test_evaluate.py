"""Protocols on cached features: against golden values, slow references and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from raysurl import evaluate as package
from raysurl import streams
from raysurl.data.shards import Shard
from raysurl.data.source import ResidentSource, SourceFacts
from raysurl.errors import InputError, RunError
from raysurl.evaluate import (
    SEEN,
    Division,
    Features,
    divide,
    evaluate,
    knn_classify,
    lbfgs,
    linear,
    logistic,
    pixel_features,
)
from raysurl.evaluate.division import hold_out
from raysurl.evaluate.evaluator import labels_to_learn
from raysurl.evaluate.scores import top
from raysurl.functional import rankme
from raysurl.recipe import Evaluation, recipe_from
from raysurl.recipe.probes import PROBES, Probe
from raysurl.train.optim import LARS


def clusters(
    n: int, *, classes: int = 4, dim: int = 8, spread: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """n samples around one centre per class; the centres depend on nothing but `classes` and `dim`."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def features_of(spread: float = 0.5, *, train: int = 300, test: int = 100, dim: int = 8) -> Features:
    bank, bank_labels = clusters(train, spread=spread, dim=dim)
    queries, query_labels = clusters(test, spread=spread, dim=dim, seed=1)
    return Features(bank, bank_labels, queries, query_labels, 4)


# ------------------------------------------------------------------ linear probe


def test_linear_probe_is_the_papers_sgd() -> None:
    """Against SGD with momentum written out in numpy on the same initial weights and order."""
    bank, labels = clusters(40, dim=3)
    epochs, lr, batch = 5, 0.5, 16
    probe = Probe(epochs=epochs, lr=(lr,), batch_size=batch)
    heads = linear.fit(lambda epoch: bank, labels, probe, num_classes=4, seed=3)
    generator = streams.torch_stream(3, "linear probe")
    weight = np.concatenate([0.01 * torch.randn(4, 3, generator=generator).numpy(), np.zeros((4, 1))], 1)
    momentum, x = np.zeros_like(weight), np.concatenate([bank.numpy(), np.ones((40, 1))], 1)
    for epoch in range(epochs):
        rate = lr * (0.1 if epoch >= 3 else 1) * (0.1 if epoch >= 4 else 1)  # 60 % and 80 % of 5
        order = torch.randperm(40, generator=generator).numpy()
        for index in (order[i : i + batch] for i in range(0, 40, batch)):
            logits = x[index] @ weight.T
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            gradient = (p - np.eye(4)[labels[index].numpy()]).T @ x[index] / len(index)
            momentum = 0.9 * momentum + gradient
            weight -= rate * momentum
    np.testing.assert_allclose(
        torch.cat([heads.weight[0], heads.bias[0][:, None]], 1).numpy(), weight, rtol=1e-4, atol=1e-5
    )


def test_linear_probe_is_deterministic_and_learns() -> None:
    features, settings = features_of(), Evaluation(linear_epochs=20)
    torch.manual_seed(1)
    first = dict(linear.run(features, settings, seed=5))
    torch.manual_seed(2)  # the global generator plays no part
    assert dict(linear.run(features, settings, seed=5)) == first
    assert set(first) == {"eval/linear_top1", "eval/linear_train_top1"}
    assert first["eval/linear_top1"] > 85  # chance is 25


def test_linear_probe_says_so_when_it_diverges(caplog: pytest.LogCaptureFixture) -> None:
    features = features_of()
    huge = Features(
        features.train * 1e18, features.train_labels, features.test * 1e18, features.test_labels, 4
    )  # logits overflow after a step at learning rate 10⁴, and no longer at a tenth or a hundredth
    metrics = dict(linear.run(huge, Evaluation(linear_epochs=2, linear_lr=1e4)))
    assert metrics["eval/linear_lr"] < 1e4
    assert math.isfinite(metrics["eval/linear_top1"])
    assert "diverged" in caplog.text
    with pytest.raises(RunError, match=r"eval\.linear_lr"):
        list(linear.run(huge, Evaluation(linear_epochs=2, linear_lr=1e20)))


def test_a_probe_of_unit_length_does_not_depend_on_the_length_of_features() -> None:
    """Features as long as those of a ResNet, of classes that overlap: at rate 10 they are fitted poorly as they are."""
    rows, labels = clusters(300, dim=64, spread=3.0)
    rows = 20 * rows / rows.norm(dim=1).mean()
    length = float(rows[:200].norm(dim=1).mean())
    probe, kept = Probe(lr=(10.0,), epochs=20, batch_size=32, unit_length=True), torch.arange(200)

    def fitted(x: Tensor, probe: Probe) -> Tensor:
        heads = linear.fit(lambda epoch: x, labels, probe, num_classes=4, seed=1, index=kept)
        return linear.logits(heads, 0, x)

    raw = probe.model_copy(update={"unit_length": False})
    expected = fitted(rows / length, raw)
    for times in (1, 1000, 0.01):
        torch.testing.assert_close(fitted(rows * times, probe), expected, rtol=1e-2, atol=1e-2)

    def loss(logits: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits[200:], labels[200:]))

    assert loss(expected) < 0.5 * loss(fitted(rows, raw))
    assert linear.mean_length(torch.zeros(3, 2)) == 1


OPTIMIZERS = {
    "sgd": lambda p, lr, wd: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=wd, nesterov=True),
    "adam": lambda p, lr, wd: torch.optim.Adam(p, lr=lr, weight_decay=wd),
    "lars": lambda p, lr, wd: LARS(
        [{"params": p[:1], "weight_decay": wd}, {"params": p[1:], "weight_decay": 0.0, "lars_exclude": True}],
        lr=lr, momentum=0.9, weight_decay=0.0, trust=1e-3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_of_many_heads_does_what_it_would_do_alone(name: str, schedule: str) -> None:
    """Against torch's optimizers, one by one, on recorded gradients."""
    bank, labels = clusters(70, dim=5)
    rates, decays = (0.01, 0.3), (0.0, 0.05)
    settings = {"optimizer": name, "schedule": schedule, "nesterov": name == "sgd", "lr_batch": 32}
    probe = Probe(epochs=6, batch_size=16, lr=rates, weight_decay=decays, **settings)
    heads = linear.fit(lambda epoch: bank + epoch, labels, probe, num_classes=4, seed=2)
    assert heads.pairs == [(lr, wd) for lr in rates for wd in decays]
    for head, (lr, decay) in enumerate(heads.pairs):
        generator = streams.torch_stream(2, "linear probe")
        weight = (0.01 * torch.randn(4, 5, generator=generator)).requires_grad_()
        bias = torch.zeros(4, requires_grad=True)
        optimizer = OPTIMIZERS[name]([weight, bias], lr, decay)
        step = 0
        for epoch in range(6):
            for part in torch.randperm(70, generator=generator).split(16):
                done = {"step": 0.1 ** ((epoch >= 3) + (epoch >= 4)), "constant": 1.0,
                        "cosine": (1 + math.cos(math.pi * step / 30)) / 2}[schedule]  # fmt: skip
                for group in optimizer.param_groups:
                    group["lr"] = lr * 16 / 32 * done
                optimizer.zero_grad()
                logits = torch.nn.functional.linear((bank + epoch)[part], weight, bias)
                torch.nn.functional.cross_entropy(logits, labels[part]).backward()
                optimizer.step()
                step += 1
        torch.testing.assert_close(heads.weight[head], weight.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(heads.bias[head], bias.detach(), rtol=1e-3, atol=1e-5)


def test_the_learning_rate_is_chosen_on_held_out_train_samples() -> None:
    features = features_of(spread=1.5)
    settings = Evaluation(linear_epochs=5, linear_lr=(1e-6, 0.1, 1e-7), linear_weight_decay=(0.0, 10.0))
    found = dict(linear.run(features, settings))
    assert (found["eval/linear_lr"], found["eval/linear_weight_decay"]) == (0.1, 0.0)
    blind = dict(linear.run(replace(features, test_labels=features.test_labels.flip(0)), settings))
    assert [blind[f"eval/linear_{n}"] for n in ("lr", "weight_decay", "train_top1")] == [
        found[f"eval/linear_{n}"] for n in ("lr", "weight_decay", "train_top1")
    ]
    assert blind["eval/linear_top1"] != found["eval/linear_top1"]
    held_out, kept = hold_out(300, linear.HELD_OUT, 0, "held out")
    assert sorted([*held_out.tolist(), *kept.tolist()]) == list(range(300))
    assert len(held_out) == 30
    # the held-out samples move nothing
    probe = settings.linear_probe
    moved = features.train.clone()
    moved[held_out] = 99
    first, second = (
        linear.fit(
            lambda epoch, rows=rows: rows, features.train_labels, probe, num_classes=4, seed=0, index=kept
        )
        for rows in (features.train, moved)
    )
    assert torch.equal(first.weight, second.weight)


def test_a_probe_that_diverges_is_no_choice() -> None:
    features = features_of()
    settings = Evaluation(linear_epochs=3, linear_lr=(1e38, 0.1))
    assert dict(linear.run(features, settings))["eval/linear_lr"] == 0.1


def test_an_augmented_probe_sees_each_epochs_views_once_and_in_order() -> None:
    features, seen = features_of(), []

    def of_epoch(epoch: int) -> Tensor:
        seen.append(epoch)
        return -features.train

    settings = Evaluation(linear_epochs=6, linear_lr=0.1)
    found = dict(linear.run(replace(features, augmented=of_epoch), settings))
    assert seen == list(range(6))
    assert found != dict(linear.run(features, settings))
    labels = features.train_labels.clone()
    labels[::2] = -1
    some = replace(features, train_labels=labels, augmented=of_epoch).labelled()
    assert torch.equal(some.augmented(0), -features.train[1::2])


@pytest.mark.parametrize("name", PROBES)
def test_each_preset_can_be_named_and_changed(name: str) -> None:
    assert Evaluation(probe=name).linear_probe == PROBES[name]
    changed = Evaluation(probe=name, linear_lr=3, linear_epochs=2, linear_augment="plain").linear_probe
    assert (changed.lr, changed.epochs, changed.augment) == ((3.0,), 2, None)
    assert changed.optimizer == PROBES[name].optimizer
    assert not changed.unit_length  # a rate of one's own is for features as they are
    assert Evaluation(probe=name, linear_lr=3, linear_unit_length=True).linear_probe.unit_length


@pytest.mark.parametrize(
    "bad",
    [
        {"probe": "resl"},
        {"linear_lr": 0},
        {"linear_lr": (0.1, -1)},
        {"linear_augment": "wek"},
        {"linear_lr": ()},
    ],
)
def test_a_probe_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))) as raised:
        recipe_from({"eval": bad})
    assert "\n" not in str(raised.value)


def test_top5_counts_the_five_best_and_ties_as_argmax_does() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (200, 9), generator=generator).float()
    labels = torch.randint(9, (200,), generator=generator)
    ranked = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :5]
    expected = np.mean([int(label) in row for label, row in zip(labels, ranked, strict=True)])
    found = dict(top("eval/x", scores, labels))
    assert found["eval/x_top5"] == pytest.approx(100 * expected)
    assert found["eval/x_top1"] == pytest.approx(100 * float((scores.argmax(1) == labels).double().mean()))
    assert set(dict(top("eval/x", scores[:, :5], labels % 5))) == {"eval/x_top1"}


# ------------------------------------------------------------------ L-BFGS probe


@pytest.mark.parametrize("block", [2**24, 90])  # all rows together; ten at a time
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_lbfgs_finds_scikit_learns_minimum(
    penalty: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "BLOCK", block)
    train, labels = clusters(250, spread=1.5)
    index = torch.randperm(250, generator=torch.Generator().manual_seed(1))[:200]
    scale = logistic.Scaling.of(train * 3 + 1, index)
    given = {"penalty": penalty, "scale": scale, "index": index}
    solution = logistic.fit(train * 3 + 1, labels, torch.zeros(4, 9), **given)
    kept = train[index].double()
    standard = (kept - kept.mean(0)) / (kept - kept.mean(0)).square().mean().sqrt()
    reference = LogisticRegression(C=1 / (penalty * len(index)), tol=1e-8, max_iter=5000)
    reference.fit(standard.numpy(), labels[index].numpy())
    np.testing.assert_allclose(solution[:, :-1].numpy(), reference.coef_, atol=5e-3)
    queries, _ = clusters(200, spread=1.5, seed=1)
    found = logistic.predict(queries * 3 + 1, solution, scale).argmax(1).numpy()
    where = ((queries.double() - kept.mean(0)) / (kept - kept.mean(0)).square().mean().sqrt()).numpy()
    assert (found == reference.predict(where)).mean() >= 0.99


def test_lbfgs_never_sees_the_test_labels() -> None:
    features = features_of(spread=1.5)
    shuffled = replace(features, test_labels=features.test_labels.flip(0))
    settings = Evaluation()
    honest, blind = (dict(lbfgs.run(f, settings))["eval/lbfgs_top1"] for f in (features, shuffled))
    train, labels = features.train, features.train_labels
    scale = logistic.Scaling.of(train)
    penalty = lbfgs.choose_penalty(train, labels, num_classes=4, seed=0, scale=scale)
    solution = logistic.fit(train, labels, torch.zeros(4, 9), penalty=penalty, scale=scale)
    predictions = logistic.predict(features.test, solution, scale).argmax(1)
    for found, truth in ((honest, features.test_labels), (blind, features.test_labels.flip(0))):
        assert found == pytest.approx(100 * float((predictions == truth).float().mean()), abs=1e-4)


def test_lbfgs_chooses_the_penalty_that_generalises() -> None:
    generator = torch.Generator().manual_seed(2)
    # 300 noise dimensions of 60 samples: a weak penalty overfits
    rows, labels = clusters(60, spread=1.0)
    noisy = torch.cat([rows, 3 * torch.randn(60, 300, generator=generator)], 1)
    chosen = [lbfgs.choose_penalty(noisy, labels, num_classes=4, seed=seed) for seed in range(5)]
    assert np.median(chosen) >= 1e-3  # six held-out samples decide
    # the class is in a dimension so small that it takes a large weight: a strong penalty cannot express it
    labels = torch.randint(3, (600,), generator=generator)
    small = 0.02 * (labels - 1 + 0.05 * torch.randn(600, generator=generator))
    rows = torch.stack([torch.randn(600, generator=generator), small], 1)
    assert lbfgs.choose_penalty(rows, labels, num_classes=3, seed=0) <= 1e-3


def test_lbfgs_needs_two_samples() -> None:
    with pytest.raises(InputError, match="at least 2"):
        lbfgs.choose_penalty(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), num_classes=1, seed=0)


# ------------------------------------------------------------------ RankMe


def test_rankme_known_ranks() -> None:
    basis, _ = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    assert rankme(basis) == pytest.approx(16, abs=1e-3)  # equal singular values: full
    assert rankme(basis[:, :1] @ torch.randn(1, 16)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(5, 3)) == 1.0


def test_rankme_matches_the_papers_formula() -> None:
    rows = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, 20)
    singular = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert rankme(rows) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


# ------------------------------------------------------------------ running protocols


def test_evaluate_names_units_and_prefix() -> None:
    features, settings = features_of(), Evaluation(linear_epochs=2)
    metrics = evaluate(features, settings)
    assert {
        "eval/knn_top1",
        "eval/knn20_top1",
        "eval/linear_top1",
        "eval/lbfgs_top1",
        "health/rankme",
    } <= set(metrics)
    predictions = knn_classify(features.train, features.train_labels, features.test, k=20, num_classes=4)
    share = np.mean((predictions == features.test_labels).numpy())
    assert metrics["eval/knn20_top1"] == pytest.approx(100 * share)
    prefixed = evaluate(features, settings, protocols=["knn", "rankme"], prefix="untrained")
    assert set(prefixed) == {
        "eval/untrained_knn_top1",
        "eval/untrained_knn20_top1",
        "health/untrained_rankme",
        "health/untrained_rank_share",
    }
    assert prefixed["eval/untrained_knn_top1"] == metrics["eval/knn_top1"]


def test_every_protocol_of_the_recipe_is_a_module_that_says_what_it_needs() -> None:
    for protocol in Evaluation().protocols:
        module = __import__(f"{package.__name__}.{protocol}", fromlist=["run"])
        assert {"labels", "inputs", "nodes", "augmented"} >= module.NEEDS
        assert isinstance(module.OF_PIXELS, bool)
        assert callable(module.run)


def test_unlabelled_samples_are_left_out() -> None:
    features, settings = features_of(), Evaluation(linear_epochs=1)
    none = evaluate(Features.unlabelled(features.train), settings)
    assert set(none) == {"health/rankme", "health/rank_share"}
    labels = features.train_labels.clone()
    labels[::2] = -1
    some = Features(features.train, labels, features.test, features.test_labels, 4)
    only = Features(features.train[1::2], features.train_labels[1::2], features.test, features.test_labels, 4)
    assert evaluate(some, settings, protocols=["knn"]) == evaluate(only, settings, protocols=["knn"])


def test_pixels_are_centred_on_the_train_mean() -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(6)
    features = pixel_features(images[:4], labels[:4], images[4:], labels[4:], 6)
    mean = images[:4].double().mean(0)
    torch.testing.assert_close(features.train, (images[:4] - mean).reshape(4, -1).float())
    torch.testing.assert_close(features.test, (images[4:] - mean).reshape(2, -1).float())


def test_features_refuse_what_cannot_be_evaluated() -> None:
    rows, labels = torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)
    broken = rows.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(InputError, match=r"1 of 4 train features are not finite .*row 2"):
        Features(broken, labels, rows, labels, 1)
    with pytest.raises(InputError, match="must be"):
        Features(rows, labels[:3], rows, labels, 1)
    with pytest.raises(InputError, match="one encoder"):
        Features(rows, labels, rows[:, :1], labels, 1)
    with pytest.raises(InputError, match="num_classes=1"):
        Features(rows, labels + 1, rows, labels, 1)


# -------------------------------------------------------------------- held out


def held(
    labels: NDArray[np.int64], split: NDArray[np.uint8] | None = None
) -> tuple[ResidentSource, Division]:
    """A source of so many vectors, of which the sixth cannot be read, and how its samples are divided."""
    readable = np.arange(len(labels)) != 5
    facts = SourceFacts(readable, (), labels, None, "resident", split=split)
    source = ResidentSource([Shard(np.zeros((len(labels), 3), np.float32))], facts)
    return source, divide(labels, np.flatnonzero(readable), split)


@pytest.mark.parametrize("kind", ["all", "some without a label", "a split of its own"])
def test_a_supervised_row_never_learns_the_labels_that_it_is_judged_by(kind: str) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    if kind == "some without a label":
        labels[::3] = -1
    split = np.tile(np.array([1, 2, 3, 0], np.uint8), 50) if kind == "a split of its own" else None
    source, division = held(labels, split)
    learnt = labels_to_learn(source, None)
    assert learnt is not None
    assert len(division.test) >= 10
    assert (learnt[division.test] == -1).all()
    np.testing.assert_array_equal(np.delete(learnt, division.test), np.delete(labels, division.test))
    assert SEEN in division.note
    np.testing.assert_array_equal(source.labels, labels)  # evaluation still knows them


def test_with_a_test_set_of_its_own_every_label_is_learnt_and_nothing_is_said() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    source, _ = held(labels)
    np.testing.assert_array_equal(labels_to_learn(source, source), labels)
    assert divide(labels, np.arange(200), test=np.arange(50)).note == ""
