"""Protocols on cached features: against golden values, slow references and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from raysurl import evaluate as package
from raysurl import streams
from raysurl.errors import InputError, RunError
from raysurl.evaluate import Features, evaluate, knn_classify, lbfgs, linear, pixel_features
from raysurl.functional import rankme
from raysurl.recipe import Evaluation


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
    probe = linear.fit(bank, labels, num_classes=4, epochs=epochs, lr=lr, batch_size=batch, seed=3)
    assert probe is not None
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
        torch.cat([probe[0], probe[1][:, None]], 1).numpy(), weight, rtol=1e-4, atol=1e-5
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


# ------------------------------------------------------------------ L-BFGS probe


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_lbfgs_finds_scikit_learns_minimum(penalty: float) -> None:
    train, labels = clusters(200, spread=1.5)
    solution = lbfgs.fit(train, labels, torch.zeros(4, 9), penalty=penalty)
    reference = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=5000)
    reference.fit(train.double().numpy(), labels.numpy())
    np.testing.assert_allclose(solution[:, :-1].numpy(), reference.coef_, atol=5e-3)
    queries, _ = clusters(200, spread=1.5, seed=1)
    agreement = (lbfgs.predict(queries, solution).numpy() == reference.predict(queries.numpy())).mean()
    assert agreement >= 0.99


def test_lbfgs_never_sees_the_test_labels() -> None:
    features = features_of(spread=1.5)
    shuffled = Features(
        features.train,
        features.train_labels,
        features.test,
        features.test_labels.flip(0),
        features.num_classes,
    )
    settings = Evaluation()
    honest, blind = (dict(lbfgs.run(f, settings))["eval/lbfgs_top1"] for f in (features, shuffled))
    train, _ = lbfgs.standardise(features.train, features.test)
    penalty = lbfgs.choose_penalty(train, features.train_labels, num_classes=4, seed=0)
    solution = lbfgs.fit(train, features.train_labels, torch.zeros(4, 9), penalty=penalty)
    predictions = lbfgs.predict(lbfgs.standardise(features.train, features.test)[1], solution)
    assert honest == pytest.approx(
        100 * float((predictions == features.test_labels).float().mean()), abs=1e-4
    )
    assert blind == pytest.approx(
        100 * float((predictions == features.test_labels.flip(0)).float().mean()), abs=1e-4
    )


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
        assert {"labels", "inputs", "nodes"} >= module.NEEDS
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
