"""kNN classification: the authors' golden values, a slow reference, ties, blocks and guards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from torch import Tensor

from raysurl.errors import InputError
from raysurl.evaluate import Features, knn, knn_classify, nearest


def features_of(spread: float) -> Features:
    """300 bank rows and 100 queries around one centre for each of four classes."""
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(4, 8, generator=generator), torch.randint(4, (400,), generator=generator)
    rows = centres[labels] + spread * torch.randn(400, 8, generator=generator)
    return Features(rows[:300], labels[:300], rows[300:], labels[300:], 4)


def reference_knn(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int, tau: float, num_classes: int
) -> list[int]:
    """Query by query in float64, plain Python: sort by (−cosine, index), sum exp(cosine/τ), first best."""
    bank, queries = bank.double().numpy(), queries.double().numpy()
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    predictions = []
    for query in queries:
        cosines = [float(query @ row) / float(np.linalg.norm(query)) for row in bank]
        ranked = sorted(range(len(bank)), key=lambda i: (-cosines[i], i))[:k]
        scores = [0.0] * num_classes
        for i in ranked:
            scores[int(labels[i])] += math.exp(cosines[i] / tau)
        predictions.append(scores.index(max(scores)))
    return predictions


@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_reproduces_the_authors_predictions(k: int) -> None:
    path = SHARED / "golden" / "superand_knn.npz"
    if not path.is_file():
        pytest.skip("no golden values beside the repository (RAYSURL_SHARED)")
    golden = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(path).items()}
    predictions = knn_classify(
        golden["train_features"],
        golden["train_labels"],
        golden["test_features"],
        k=k,
        tau=float(golden["sigma"]),
        num_classes=6,
    )
    assert torch.equal(predictions, golden[f"K{k}_pred_transcription"])
    correct = (predictions == golden["test_labels"]).double()
    assert torch.equal(correct, golden[f"K{k}_correct_per_sample"])
    assert float(correct.mean()) == pytest.approx(float(golden[f"K{k}_accuracy"]), abs=1e-12)


@pytest.mark.parametrize(("k", "tau"), [(1, 0.1), (7, 0.1), (7, 1.0), (50, 0.02), (200, 0.1)])
def test_knn_matches_a_slow_reference(k: int, tau: float) -> None:
    features = features_of(spread=1.5)
    given = {"k": k, "tau": tau, "num_classes": 4}
    expected = reference_knn(features.train, features.train_labels, features.test, **given)
    assert knn_classify(features.train, features.train_labels, features.test, **given).tolist() == expected
    assert len(set(expected)) == 4  # the task is not trivial


def test_knn_weights_matter() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    # exp(1/τ) against 2·exp(0.6/τ): the near one wins for small τ, the two far ones for large τ
    assert knn_classify(bank, labels, query, k=3, tau=0.1, num_classes=2).tolist() == [0]
    assert knn_classify(bank, labels, query, k=3, tau=10.0, num_classes=2).tolist() == [1]


def either_way(patch: pytest.MonkeyPatch, compiled: bool, **blocks: int) -> None:
    patch.setattr(nearest, "COMPILED_FROM", 0 if compiled else 2**60)
    for name, size in blocks.items():
        patch.setattr(nearest, name, size)


@pytest.mark.parametrize("compiled", [False, True])
def test_knn_does_not_depend_on_the_blocks_or_on_scale(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    features = features_of(spread=1.5)
    given = {"k": 20, "num_classes": 4}
    whole = knn_classify(features.train, features.train_labels, features.test, **given)
    # smaller than k: blocks are merged
    either_way(monkeypatch, compiled, QUERY_BLOCK=7, BANK_BLOCK=13, TOPK_BANK_BLOCK=13, QUERIES_KEPT=21)
    assert torch.equal(whole, knn_classify(features.train, features.train_labels, features.test, **given))
    scales = torch.rand(len(features.train), 1) + 0.1
    scaled = knn_classify(features.train * scales, features.train_labels, features.test * 30, **given)
    assert torch.equal(whole, scaled)


def test_several_k_share_one_search() -> None:
    features = features_of(spread=1.5)
    bank, labels, queries = features.train, features.train_labels, features.test
    together = knn.classify(bank, labels, queries, ks=(200, 1, 20), tau=0.1, num_classes=4)
    alone = [knn_classify(bank, labels, queries, k=k, num_classes=4) for k in (200, 1, 20)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("compiled", [False, True])
def test_knn_never_holds_more_similarities_than_a_block(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    either_way(monkeypatch, compiled, QUERY_BLOCK=8, BANK_BLOCK=32, TOPK_BANK_BLOCK=32)
    sizes: list[int] = []
    products = nearest._products

    def seen(*given: Any) -> Tensor:
        found = products(*given)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(nearest, "_products", seen)
    features = features_of(0.5)
    knn_classify(features.train, features.train_labels, features.test, k=16, num_classes=4)
    assert 0 < max(sizes) <= 8 * 32


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bank_block", [2, 3, 100])
def test_knn_ties_go_to_the_lower_index_and_the_lower_class(
    monkeypatch: pytest.MonkeyPatch, bank_block: int, compiled: bool
) -> None:
    either_way(monkeypatch, compiled, BANK_BLOCK=bank_block, TOPK_BANK_BLOCK=bank_block)
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    _, index = nearest.nearest(bank, torch.tensor([[1.0, 0.0]]), 3)
    assert index.tolist() == [[1, 2, 3]]
    labels, query = torch.tensor([0, 2, 1, 0, 0, 0]), torch.tensor([[1.0, 0.0]])
    assert knn_classify(bank, labels, query, k=1, num_classes=3).tolist() == [2]
    assert knn_classify(bank, labels, query, k=2, num_classes=3).tolist() == [1]  # classes 1 and 2 are even


@given(
    bank=st.integers(1, 60), kinds=st.integers(1, 9), queries=st.integers(1, 9), dim=st.integers(1, 40),
    k=st.integers(1, 12), blocks=st.tuples(st.integers(1, 70), st.integers(1, 10), st.integers(1, 70)),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80)
def test_the_search_is_a_stable_sort_of_all_cosines_on_any_device(
    bank: int, kinds: int, queries: int, dim: int, k: int, blocks: tuple[int, int, int], seed: int
) -> None:
    """The bank is full of equal rows, whose cosines are equal wherever they stand, either way."""
    generator = torch.Generator().manual_seed(seed)
    rows, asked = (torch.randn(n, dim, generator=generator) for n in (kinds, queries))
    which, k = torch.randint(kinds, (bank,), generator=generator), min(k, bank)
    unit = torch.nn.functional.normalize(asked, dim=1)
    cosines = (unit.double() @ torch.nn.functional.normalize(rows, dim=1).double().T)[:, which].float()
    expected = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("BANK_BLOCK", "QUERY_BLOCK", "TOPK_BANK_BLOCK"), blocks, strict=True):
            patch.setattr(nearest, name, size)
        found = []
        for least in (0, 2**60):  # compiled, and not
            patch.setattr(nearest, "COMPILED_FROM", least)
            found.append(nearest.nearest(rows[which], asked, k))
    for similarity, index in found:
        torch.testing.assert_close(similarity, cosines.gather(1, expected), atol=1e-6, rtol=0)
        if dim > 1:  # of one dimension all cosines are 1 or −1, or nearly
            assert index.tolist() == expected.tolist()


def test_the_search_keeps_the_best_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rising similarities make every row a candidate; falling ones none but the first."""
    either_way(monkeypatch, True)
    angles = torch.linspace(0, 1.5, 5000)
    rising = torch.stack([angles.sin(), angles.cos()], 1)
    query = torch.tensor([[1.0, 0.0]])
    assert nearest.nearest(rising, query, 7)[1].tolist() == [list(range(4999, 4992, -1))]
    assert nearest.nearest(rising.flip(0), query, 7)[1].tolist() == [list(range(7))]


def test_the_search_takes_any_length_and_refuses_what_is_not_finite() -> None:
    bank, query = (
        torch.tensor([[1e30, 0.0], [0.0, 1e-5], [3e38, 3e38], [0.0, 0.0]]),
        torch.tensor([[0.0, 2.0]]),
    )
    similarity, index = nearest.nearest(bank.double(), query.half(), 4)
    assert index.tolist() == [[1, 2, 0, 3]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.5**0.5, 0.0, 0.0]]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="not finite"):
            nearest.nearest(torch.tensor([[bad, 1.0]]), query, 1)


def test_knn_does_not_overflow_for_a_small_tau() -> None:
    bank, query = torch.tensor([[0.9, 0.4], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert knn_classify(bank, torch.tensor([0, 1]), query, k=2, tau=1e-3, num_classes=2).tolist() == [1]


def test_knn_guards() -> None:
    bank, labels, queries = torch.eye(3), torch.tensor([0, 1, 1]), torch.eye(3)[:2]
    assert knn_classify(bank, labels, queries, k=200, num_classes=2).tolist() == [0, 1]  # k > N, C < 5
    assert knn_classify(bank, labels, queries[:0], num_classes=2).shape == (0,)
    for bad in (
        lambda: knn_classify(bank[:0], labels[:0], queries, num_classes=2),
        lambda: knn_classify(bank, labels[:2], queries, num_classes=2),
        lambda: knn_classify(bank, labels, queries[:, :2], num_classes=2),
        lambda: knn_classify(bank, labels, queries, k=0, num_classes=2),
        lambda: knn_classify(bank, labels, queries, tau=0.0, num_classes=2),
        lambda: knn_classify(bank, labels, queries, num_classes=1),
        lambda: knn_classify(bank, labels - 1, queries, num_classes=2),
    ):
        with pytest.raises(InputError):
            bad()
