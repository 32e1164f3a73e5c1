"""The relative contrastive loss against a float64 transcription of the paper's equations, and what it reduces to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import load

from raysurl.functional import info_nce, relative_contrastive_loss


@pytest.fixture
def golden():
    g = load("rcl_loss_transcription")
    return {k: torch.tensor(v) for k, v in g.items()}


def test_loss_and_gradient_are_equations_2_to_4(golden):
    queries = golden["q"].clone().requires_grad_()
    loss = relative_contrastive_loss(
        queries, golden["z_key"], golden["queue"], golden["same_label"], tau=float(golden["tau"])
    )
    loss.backward()
    np.testing.assert_allclose(loss.detach(), golden["eq2_mean_over_batch"], rtol=1e-5)
    np.testing.assert_allclose(queries.grad, golden["grad_q_of_mean"], rtol=1e-4, atol=1e-6)


def test_each_level_and_sample_is_equation_3(golden):
    for h in range(3):
        for b in range(6):
            one = relative_contrastive_loss(
                golden["q"][h : h + 1, b : b + 1],
                golden["z_key"][b : b + 1],
                golden["queue"],
                golden["same_label"][h : h + 1, b : b + 1],
                tau=0.1,
            )
            assert float(one) == pytest.approx(float(golden["per_level_per_sample_eq3"][h, b]), rel=1e-5)


def test_one_level_with_the_own_key_is_info_nce(golden):
    same = torch.ones(1, 6, dtype=torch.bool)
    ours = relative_contrastive_loss(golden["q"][:1], golden["z_key"], golden["queue"], same, tau=0.1)
    reference = info_nce(golden["q"][0], golden["z_key"], golden["queue"], tau=0.1)
    assert float(ours) == pytest.approx(float(reference), rel=1e-6)
    np.testing.assert_allclose(float(ours), golden["infonce_eq1_level0"].mean(), rtol=1e-5)


def test_several_keys_are_averaged_and_masked_entries_are_left_out():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(2, 4, 5, generator=generator), dim=2) for _ in range(2))
    queue = F.normalize(torch.randn(7, 5, generator=generator), dim=1)
    same = torch.rand(2, 2, 4, generator=generator) < 0.5
    mask = torch.rand(4, 7, generator=generator) < 0.3
    slow = []
    for j in range(2):
        for h in range(2):
            for b in range(4):
                up = float(torch.exp(queries[h, b] @ keys[j, b] / 0.2))
                rest = sum(
                    float(torch.exp(queries[h, b] @ queue[k] / 0.2)) for k in range(7) if not mask[b, k]
                )
                slow.append(-np.log((up if same[j, h, b] else 1.0) / (up + rest)))
    ours = relative_contrastive_loss(queries, keys, queue, same, tau=0.2, negatives_mask=mask)
    assert float(ours) == pytest.approx(np.mean(slow), rel=1e-5)
