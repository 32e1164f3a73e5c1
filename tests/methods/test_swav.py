"""SwAV beyond the contract: codes, frozen prototypes, the queue and small views."""

import tempfile
from dataclasses import replace
from pathlib import Path

import contract
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_baselines import double, first_batch, rows, started

from raysurl import distributed
from raysurl.errors import InputError
from raysurl.methods import swav
from raysurl.recipe import recipe_from
from raysurl.testing.ranks import on_ranks

MULTI_CROP = {"small_views": ["small_1", "small_2"]}


def slow_sinkhorn(scores, epsilon, iterations):
    """The authors' alternation on Q = exp(scores/ε)ᵀ (P, R), with the marginals 1/P and 1/R named."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(iterations):
        q *= ((1 / q.shape[0]) / q.sum(axis=1))[:, None]
        q *= ((1 / q.shape[1]) / q.sum(axis=0))[None, :]
    return (q / q.sum(axis=0, keepdims=True)).T


def slow_swav(z, prototypes, queue, *, tau, epsilon, iterations):
    total, terms = 0.0, 0
    for s in (0, 1):
        scores = np.concatenate([queue[:, s], z[s]]) @ prototypes.T
        codes = slow_sinkhorn(scores, epsilon, iterations)[len(queue) :]
        for v in range(len(z)):
            if v == s:
                continue
            for b in range(len(codes)):
                logits = prototypes @ z[v][b] / tau
                log_p = logits - np.log(np.exp(logits).sum())
                total -= (codes[b] @ log_p) / len(codes)
            terms += 1
    return total / terms


def test_swav_equals_the_swapped_prediction_with_queue_and_small_views(tmp_path):
    run, batch, _, _ = started("swav", tmp_path, method=MULTI_CROP)
    m, queue = run.method, F.normalize(rows(3, 48, 2 * 16).view(48, 2, 16), dim=2)
    full = replace(run.progress, step=3)  # three steps of 16 have filled it
    with torch.no_grad():
        m.prototypes.mul_(3)  # of unit length before each step
    output = m(batch, {"features": queue.flatten(1)}, full)
    z = [double(x) for x in m.embed(list(batch.views.values()))]
    slow = slow_swav(z, double(m.prototypes), double(queue), tau=0.1, epsilon=0.05, iterations=3)
    assert len(z) == 4
    assert float(output.loss.detach()) == pytest.approx(slow, rel=1e-4)


def test_sinkhorn_meets_its_marginals_and_equals_the_authors_alternation():
    scores = F.normalize(rows(4, 30, 8), dim=1) @ F.normalize(rows(5, 6, 8), dim=1).T
    three = swav.sinkhorn(scores / 0.05, iterations=3)
    np.testing.assert_allclose(double(three), slow_sinkhorn(double(scores), 0.05, 3), rtol=1e-4, atol=1e-6)
    many = swav.sinkhorn(scores / 0.05, iterations=300)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(30))
    torch.testing.assert_close(many.sum(dim=0), torch.full((6,), 30 / 6), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(swav.sinkhorn(scores * 1e6, iterations=3)).all()


def test_swav_codes_ignore_how_popular_a_prototype_is_but_not_the_rows_beside_them():
    scores = rows(6, 12, 4)
    codes = swav.sinkhorn(scores, iterations=3)
    torch.testing.assert_close(swav.sinkhorn(scores + torch.arange(4.0), iterations=3), codes)
    more = torch.cat([scores, rows(8, 5, 4)])
    assert not torch.allclose(swav.sinkhorn(more, iterations=3)[:12], codes)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lars"])
def test_swav_prototypes_do_not_move_while_frozen(optimizer, tmp_path):
    """Not by decay either, nor by a momentum that was gathered meanwhile."""
    settings = {"name": optimizer, "lr": 0.05, "lr_batch": 0, "weight_decay": 0.1, "decay_filter": "all"}
    train = {"batch_size": 16, "epochs": 2, "optimizer": settings}
    recipe = contract.recipe_for("swav", method={"frozen_steps": 4}, train=train)
    run = contract.start(recipe, tmp_path / "run")
    start = run.method.prototypes.detach().clone()
    contract.steps(run, 4)
    torch.testing.assert_close(run.method.prototypes.detach(), start, rtol=0, atol=1e-6)
    kept = run.optimizer.state.get(run.method.prototypes, {})
    assert not any(value.any() for value in kept.values())
    contract.steps(run, 1)
    assert any(value.any() for value in run.optimizer.state[run.method.prototypes].values())


def test_the_swav_queue_has_a_say_as_soon_as_it_is_full(tmp_path):
    losses = {}
    for name, changes in {"none": {"queue_size": 0}, "later": {"queue_size": 32, "queue_epoch": 1}}.items():
        run = contract.start(contract.recipe_for("swav", method=changes), tmp_path / name)
        losses[name] = contract.steps(run, 8)
    assert losses["none"][:7] == losses["later"][:7]  # an epoch of five steps, and two that fill it
    assert losses["none"][7] != losses["later"][7]
    pairs = run.memory.snapshot(slice(None))["features"].view(32, 2, 16)
    torch.testing.assert_close(pairs.norm(dim=2), torch.ones(32, 2))


def test_swav_small_views_have_their_own_size_and_only_predict(tmp_path):
    small = {"base": "contrastive", "size": 8, "crop": [0.1, 0.3]}
    views = {"size": 16, "policies": {"small_1": small, "small_2": small}}
    _, batch, _, output = started("swav", tmp_path, method=MULTI_CROP, views=views)
    assert {name: x.shape[-1] for name, x in batch.views.items()} == {
        "view_1": 16, "view_2": 16, "small_1": 8, "small_2": 8,
    }  # fmt: skip
    assert torch.isfinite(output.loss)
    assert output.push.keys.shape == (1, 16, 2 * 16)


@pytest.mark.parametrize("names", [["view_1"], ["a", "a"]])
def test_swav_view_names_must_differ(names):
    with pytest.raises(InputError, match=r"method\.small_views=.*give each view its own name"):
        recipe_from({"method": {"name": "swav", "small_views": names}})


def swav_with_a_queue(rank, world_size):
    """Loss and prototype gradient of a step that reads a full queue and four views."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = contract.recipe_for("swav", method=MULTI_CROP)
        run = contract.start(recipe, Path(folder), rank=rank, world_size=world_size)
        queue = F.normalize(rows(3, 48, 2 * 16).view(48, 2, 16), dim=2).flatten(1)
        output = run.model(first_batch(run), {"features": queue}, replace(run.progress, step=3))
        output.loss.backward()
        return {"loss": distributed.mean(output.loss.detach()), "gradient": run.method.prototypes.grad}


@pytest.mark.slow
def test_swav_codes_with_a_queue_are_those_of_the_global_batch():
    alone, ranks = swav_with_a_queue(0, 1), on_ranks(swav_with_a_queue, 2, 2)
    for result in ranks:
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(result["gradient"], alone["gradient"], rtol=1e-4, atol=1e-6)
