"""SimCLR, BYOL, SimSiam, Barlow Twins and VICReg, and what holds for SwAV too: equations, limits, settings."""

from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysurl import functional as fn
from raysurl import method
from raysurl.errors import InputError
from raysurl.methods import barlow, byol, simclr, swav, vicreg
from raysurl.nets.heads import mlp
from raysurl.recipe import recipe_from

NAMES = ["simclr", "byol", "simsiam", "barlow", "vicreg", "swav"]


def first_batch(run):
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    return run.loader.to_batch(micro_batches[0])


def started(name, tmp_path, **changes):
    """A run, its first batch, and the method's output for it."""
    run = contract.start(contract.recipe_for(name, **changes), tmp_path / "run")
    batch = first_batch(run)
    snapshot = run.memory.snapshot(slice(None)) if run.memory else {}
    return run, batch, snapshot, run.method(batch, snapshot, run.progress)


def rows(seed, count=6, dim=5):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# -------------------------------------------------------------------- equations


def slow_nt_xent(z1, z2, tau):
    z = np.concatenate([z1, z2])
    n, total = len(z1), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        below = sum(np.exp(z[i] @ z[k] / tau) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(z[i] @ z[j] / tau) / below)
    return total / (2 * n)


def slow_barlow(z1, z2, weight):
    z1, z2 = (z - z.mean(axis=0) for z in (z1, z2))
    loss, dim = 0.0, z1.shape[1]
    for i in range(dim):
        for j in range(dim):
            above = sum(z1[b, i] * z2[b, j] for b in range(len(z1)))
            c = above / (np.sqrt(sum(z1[:, i] ** 2)) * np.sqrt(sum(z2[:, j] ** 2)))
            loss += (1 - c) ** 2 if i == j else weight * c**2
    return loss


def slow_vicreg(z1, z2, weights):
    n, d = z1.shape
    s = sum((z1[b, j] - z2[b, j]) ** 2 for b in range(n) for j in range(d)) / (n * d)
    v = c = 0.0
    for z in (z1, z2):
        mean = z.mean(axis=0)
        for i in range(d):
            variance = sum((z[b, i] - mean[i]) ** 2 for b in range(n)) / (n - 1)
            v += max(0.0, 1 - np.sqrt(variance + 1e-4)) / d / 2
            for j in range(d):
                if i != j:
                    cov = sum((z[b, i] - mean[i]) * (z[b, j] - mean[j]) for b in range(n)) / (n - 1)
                    c += cov**2 / d
    return weights[0] * s + weights[1] * v + weights[2] * c


def double(x):
    return x.detach().double().numpy()


def test_simclr_equals_eq_1(tmp_path):
    run, batch, _, output = started("simclr", tmp_path)
    m = run.method
    both = torch.cat([batch.views["view_1"], batch.views["view_2"]])
    z = unit(double(m.projector(m.encoder(both))))
    assert float(output.loss.detach()) == pytest.approx(slow_nt_xent(z[:16], z[16:], 0.1), rel=1e-5)


def test_byol_equals_eq_2_in_both_directions(tmp_path):
    run, batch, _, output = started("byol", tmp_path)
    m, slow = run.method, 0.0
    for online, target in (("view_1", "view_2"), ("view_2", "view_1")):
        q = unit(double(m.predictor(m.projector(m.encoder(batch.views[online])))))
        t = unit(double(m.teacher(batch.views[target], run.progress)))
        slow += sum(((q[b] - t[b]) ** 2).sum() for b in range(16)) / 16
    assert float(output.loss.detach()) == pytest.approx(slow, rel=1e-5)


def test_simsiam_equals_eqs_1_to_4_and_stops_the_targets_gradient(tmp_path):
    run, batch, _, output = started("simsiam", tmp_path)
    m = run.method
    output.loss.backward()
    got = [p.grad.clone() for p in m.encoder.parameters()]
    z = [m.projector(m.encoder(batch.views[name])) for name in ("view_1", "view_2")]
    p = [m.predictor(x) for x in z]
    constants = [torch.from_numpy(unit(double(x))).float() for x in z]
    cosines = [sum(unit(double(p[i]))[b] @ unit(double(z[1 - i]))[b] for b in range(16)) / 16 for i in (0, 1)]
    assert float(output.loss.detach()) == pytest.approx(-(cosines[0] + cosines[1]) / 2, rel=1e-4, abs=1e-7)
    m.zero_grad()
    (-sum((F.normalize(p[i], dim=1) * constants[1 - i]).sum(dim=1).mean() for i in (0, 1)) / 2).backward()
    for ours, expected in zip(got, (q.grad for q in m.encoder.parameters()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_barlow_twins_equals_eqs_1_and_2(tmp_path):
    run, batch, _, output = started("barlow", tmp_path)
    z = [double(run.method.projector(run.method.encoder(x))) for x in batch.views.values()]
    # the floor of the variance, 1e-5 against variances of about 0.1, is seen in the fourth digit
    assert float(output.loss.detach()) == pytest.approx(slow_barlow(*z, 0.0051), rel=1e-3)
    big = [100 * rows(s) for s in (1, 2)]
    c = barlow.cross_correlation(*big)
    loss = (1 - c.diagonal()).square().sum() + 0.0051 * fn.off_diagonal_squares(c)
    assert float(loss) == pytest.approx(slow_barlow(double(big[0]), double(big[1]), 0.0051), rel=1e-5)


def test_vicreg_equals_eqs_1_to_6(tmp_path):
    weights = {"invariance": 3.0, "variance": 2.0, "covariance": 5.0}
    run, batch, _, output = started("vicreg", tmp_path, method=weights)
    z = [double(run.method.projector(run.method.encoder(x))) for x in batch.views.values()]
    assert float(output.loss.detach()) == pytest.approx(slow_vicreg(*z, (3, 2, 5)), rel=1e-5)


# -------------------------------------------------------------------- invariances


def test_what_the_losses_do_not_depend_on():
    z1, z2 = (F.normalize(rows(s), dim=1) for s in (0, 1))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turn = torch.linalg.qr(rows(7, 5, 5))[0]
    contrast = simclr.nt_xent(z1, z2, tau=0.3)
    for others in ((z2, z1), (z1[order], z2[order]), (z1 @ turn, z2 @ turn)):
        torch.testing.assert_close(simclr.nt_xent(*others, tau=0.3), contrast)
    torch.testing.assert_close(byol.regression(3 * z1, 5 * z2), byol.regression(z1, z2))
    assert float(byol.regression(z1, z1)) == pytest.approx(0, abs=1e-6)
    assert float(byol.regression(z1, -z1)) == pytest.approx(4)
    c = barlow.cross_correlation(z1, z2, eps=1e-12)
    torch.testing.assert_close(barlow.cross_correlation(7 * z1 - 2, z2 * torch.arange(1, 6), eps=1e-12), c)
    torch.testing.assert_close(barlow.cross_correlation(z1, z1, eps=1e-12).diagonal(), torch.ones(5))
    torch.testing.assert_close(vicreg.covariance(z1 + 4), vicreg.covariance(z1))
    assert float(fn.variance_hinge(100 * z1)) == 0


def test_matrix_products_of_the_losses_stay_in_fp32_under_bf16():
    z1, z2 = (F.normalize(rows(s, 8, 16), dim=1) for s in (0, 1))
    losses = (lambda: simclr.nt_xent(z1, z2, tau=0.1), lambda: barlow.cross_correlation(z1, z2))
    for loss in (*losses, lambda: vicreg.covariance(z1)):
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss()
        assert inside.dtype == torch.float32
        assert torch.equal(inside, loss())


# -------------------------------------------------------------------- limits


def test_a_collapsed_batch_has_the_loss_that_the_equations_give():
    z = torch.full((6, 5), 0.3, requires_grad=True)
    u = F.normalize(z, dim=1)
    found = {
        "simclr": (simclr.nt_xent(u, u, tau=0.1), np.log(11)),
        "byol": (byol.regression(z, z), 0),
        "barlow": ((1 - barlow.cross_correlation(z, z).diagonal()).square().sum(), 5),
        "variance": (fn.variance_hinge(z), 0.99),
        "covariance": (vicreg.covariance(z), 0),
    }
    for loss, expected in found.values():
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
        (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
        assert torch.isfinite(grad).all()
    torch.testing.assert_close(swav.sinkhorn(torch.ones(6, 4), iterations=3), torch.full((6, 4), 0.25))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_images_give_a_finite_loss_and_gradient(name, value, tmp_path):
    run, batch, snapshot, _ = started(name, tmp_path)
    flat = replace(batch, views={k: torch.full_like(x, value) for k, x in batch.views.items()})
    output = run.method(flat, snapshot, run.progress)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in run.method.parameters() if p.grad is not None)
    assert float(output.logs["health/std"]) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_is_refused_by_the_recipe(name):
    with pytest.raises(InputError, match=r"train\.batch_size=1 is not valid"):
        recipe_from({"method": {"name": name}, "train": {"batch_size": 1}})


def test_a_batch_of_one_is_refused_by_the_losses():
    z = F.normalize(rows(0, 1), dim=1)
    losses = (lambda: simclr.nt_xent(z, z, tau=0.1), lambda: barlow.cross_correlation(z, z))
    for loss in (*losses, lambda: fn.variance_hinge(z), lambda: vicreg.covariance(z)):
        with pytest.raises(InputError, match="at least two samples, got 1"):
            loss()


# -------------------------------------------------------------------- settings

CHANGES = {
    "simclr": {"hidden": 24, "dim": 12, "tau": 0.5},
    "byol": {
        "hidden": 24, "predictor_hidden": 24, "dim": 12, "momentum": 0.5, "momentum_schedule": "constant",
    },
    "simsiam": {"hidden": 24, "projector_layers": 2, "predictor_hidden": 24, "dim": 12},
    "barlow": {"hidden": 24, "projector_layers": 2, "dim": 12, "redundancy": 0.1},
    "vicreg": {"hidden": 24, "dim": 12, "invariance": 20.0, "variance": 20.0, "covariance": 2.0},
    "swav": {
        "hidden": 24, "dim": 12, "prototypes": 10, "tau": 0.2, "epsilon": 0.1, "sinkhorn_iterations": 1,
        "frozen_steps": 2, "queue_size": 32, "queue_epoch": 1, "small_views": ["small_1"],
    },
}  # fmt: skip
SETTINGS = [(name, key) for name, changes in CHANGES.items() for key in changes]


@pytest.fixture(scope="module")
def usual_losses(tmp_path_factory):
    def losses(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            found[name] = contract.steps(contract.start(contract.recipe_for(name), folder / "run"), 6)
        return found[name]

    found = {}
    return losses


def test_every_setting_is_tried():
    assert {name: set(changes) for name, changes in CHANGES.items()} == {
        name: set(method.load(name).Config.model_fields) - {"name"} for name in NAMES
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), SETTINGS)
def test_every_setting_changes_the_losses(name, key, usual_losses, tmp_path):
    recipe = contract.recipe_for(name, method={key: CHANGES[name][key]})
    losses = contract.steps(contract.start(recipe, tmp_path / "run"), 6)
    assert np.isfinite(losses).all()
    assert losses != usual_losses(name)


def test_heads_of_several_layers_and_an_output_norm():
    # an output that varies little at some initial weights shows the norm's eps
    torch.manual_seed(0)
    head = mlp(4, 8, 3, torch.nn.BatchNorm1d, layers=3, output_norm="plain")
    assert [type(m).__name__ for m in head] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    assert not any(p.requires_grad for p in head[-1].parameters())
    assert all(p.requires_grad for p in mlp(4, 8, 3, torch.nn.BatchNorm1d, output_norm="affine").parameters())
    assert [type(m).__name__ for m in mlp(4, 8, 3, None, layers=3, output_norm="plain")] == [
        "Linear", "ReLU", "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    out = head(rows(0, 9, 4))
    torch.testing.assert_close(out.std(dim=0, correction=0), torch.ones(3), rtol=1e-3, atol=1e-3)
