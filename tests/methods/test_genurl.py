"""GenURL: identities of its loss and target, the graphs behind its structures, and what each setting does."""

import math

import contract
import numpy as np
import pytest
import torch

from raysurl.build import method_of
from raysurl.errors import InputError
from raysurl.functional import log_student_kernel, log_student_of_rows, similarity_loss
from raysurl.method import Progress
from raysurl.methods.genurl.structures import pairwise_distance
from raysurl.recipe.model import recipe_from
from raysurl.train import trainer

WITH_KNN = [{"kind": "instance"}, {"kind": "knn", "k": 6, "weight": 0.5}]


def start(folder, **method):
    run = contract.start(contract.recipe_for("genurl", method=method), folder / "run")
    trainer.refresh_memory(run)
    return run


def batch_of(run):
    ((micro_batches, _),) = run.loader.steps(run.step, run.step + 1)
    return run.loader.to_batch(micro_batches[0])


def read(run):
    return run.memory.snapshot(slice(None)) if run.memory else {}


def kappa(d, nu):
    """Eq. 1, one number at a time."""
    scale = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu / 2)
    return math.exp(scale) * (1 + d * d / nu) ** (-(nu + 1) / 2)


# -------------------------------------------------------------------- the loss


def test_bce_has_no_gradient_where_p_equals_q():
    log_q = (-torch.rand(5, 5, dtype=torch.float64) * 4 - 0.1).requires_grad_()
    similarity_loss(log_q.exp(), log_q=log_q, kind="bce").backward()
    assert log_q.grad.abs().max() < 1e-12
    moved = log_q.detach().clone().requires_grad_()
    similarity_loss(log_q.exp() * 0.9, log_q=moved, kind="bce").backward()
    assert (moved.grad > 0).all()  # more similar than they should be: pushed apart


def test_gkl_with_a_one_hot_target_is_elementwise_what_it_says():
    q = torch.rand(6, 6, dtype=torch.float64) * 0.9 + 0.05
    for i in range(6):
        for j in range(6):
            one = similarity_loss(torch.eye(6)[i, j][None], q[i, j][None], kind="gkl", gamma=0.1)
            expected = -q[i, i].log() + 0.1 * (1 - q[i, i]) if i == j else 0.1 * q[i, j]
            torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("kind", ["mse", "kl", "bce", "gkl"])
def test_gradients_agree_with_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 3, dtype=torch.float64, generator=generator)
    d = (torch.rand(4, 3, dtype=torch.float64, generator=generator) * 3 + 0.2).requires_grad_()
    mask = torch.rand(4, 3, generator=generator) < 0.7
    for nu in (100.0, 0.01):
        loss = lambda d, nu=nu: similarity_loss(p, log_q=log_student_kernel(d, nu), kind=kind, mask=mask)  # noqa: E731
        assert torch.autograd.gradcheck(loss, d)


@pytest.mark.parametrize("nu", [0.001, 1.0, 100.0])
def test_the_kernel_of_rows_is_that_of_their_distances(nu):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, dtype=torch.float64, generator=generator).requires_grad_() for n in (5, 7))
    torch.testing.assert_close(log_student_of_rows(a, b, nu), log_student_kernel(torch.cdist(a, b), nu))
    assert torch.autograd.gradcheck(lambda a, b: log_student_of_rows(a, b, nu), (a, b))
    assert torch.autograd.gradcheck(lambda a: log_student_of_rows(a, a, nu), a)  # a row with itself: no slope
    assert log_student_of_rows(a.float(), b.bfloat16(), nu).dtype == torch.float32
    with pytest.raises(InputError, match="positive"):
        log_student_of_rows(a, b, 0)


@pytest.mark.parametrize("kind", ["mse", "kl", "bce", "gkl"])
def test_a_similarity_that_is_known_beside_its_logarithm_changes_nothing(kind):
    log_q = (-torch.rand(4, 4) * 200).requires_grad_()  # some underflow
    p = torch.rand(4, 4)
    both = similarity_loss(p, log_q.exp(), log_q=log_q, kind=kind)
    alone = similarity_loss(p, log_q=log_q, kind=kind)
    assert both == alone
    slopes = [torch.autograd.grad(loss, log_q)[0] for loss in (both, alone)]
    assert torch.equal(*slopes)


def test_a_far_positive_and_a_coincident_negative_keep_a_finite_loss():
    distance = torch.tensor([0.0, 1e-8, 30.0, 1e6], requires_grad=True)
    for p in (0.0, 1.0):
        for kind in ("mse", "kl", "bce", "gkl"):
            loss = similarity_loss(torch.full((4,), p), log_q=log_student_kernel(distance, 1e9), kind=kind)
            (slope,) = torch.autograd.grad(loss, distance)
            assert torch.isfinite(loss)
            assert torch.isfinite(slope).all()
            if p and kind != "mse":
                assert slope[2] > 0  # κ underflows there, its logarithm does not


def test_pairs_that_do_not_count_change_nothing_and_none_at_all_is_zero():
    p, q = torch.rand(4, 4), torch.rand(4, 4)
    mask = ~torch.eye(4, dtype=torch.bool)
    q_other = torch.where(mask, q, torch.nan)
    assert similarity_loss(p, q_other, kind="mse", mask=mask) == similarity_loss(p, q, kind="mse", mask=mask)
    assert similarity_loss(p, q, kind="bce", mask=torch.zeros(4, 4, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": torch.ones(2), "kind": "huber"}, "mse, kl, bce, gkl"),
        ({"q": torch.ones(3), "kind": "mse"}, "one shape"),
        ({"q": torch.ones(2), "kind": "mse", "mask": torch.ones(1, dtype=torch.bool)}, "one shape"),
        ({"kind": "mse"}, "as log_q, or as both"),
        ({"q": torch.ones(2), "kind": "mse", "reduction": "max"}, "mean or sum"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        similarity_loss(torch.ones(2), **arguments)
    with pytest.raises(InputError, match="positive"):
        log_student_kernel(torch.ones(2), 0)


# -------------------------------------------------------------------- the target


def test_distances_are_what_their_names_say():
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    cosine = torch.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(pairwise_distance(a, b, "1-cos"), 1 - cosine)
    torch.testing.assert_close(pairwise_distance(a, b, "literal"), cosine)
    torch.testing.assert_close(pairwise_distance(a, b, "chord"), (2 - 2 * cosine).sqrt())
    torch.testing.assert_close(pairwise_distance(a, b, "l2"), (a[:, None] - b[None]).norm(dim=2))
    with torch.autocast("cpu", torch.bfloat16):  # losses are in fp32, also where the networks are not
        torch.testing.assert_close(pairwise_distance(a, b, "1-cos"), 1 - cosine)


@pytest.mark.parametrize("clamp", ["clamp", "convex", "none"])
@pytest.mark.parametrize("structures", [[{"kind": "instance"}], WITH_KNN])
@pytest.mark.parametrize("centre", [True, False])
def test_loss_and_dynamic_target_are_their_definitions(tmp_path, clamp, structures, centre):
    settings = {"target_clamp": clamp, "nu_x": 20.0, "nu_z": 10.0, "sigma": 0.3, "centre_latents": centre}
    run = start(tmp_path, structures=structures, **settings)
    batch, progress = batch_of(run), Progress(3, 10, 5)
    snapshot = read(run)
    output = run.method(batch, snapshot, progress)
    z = [run.method.encoder(batch.views[f"view_{i}"]).detach().double().numpy() for i in (1, 2)]
    h = [run.method.neck(torch.from_numpy(x).float()).detach().double().numpy() for x in z]
    z = [x - np.concatenate(z).mean(axis=0) for x in z] if centre else z
    total, count = 0.0, len(batch.index)
    for i in range(count):
        for j in range(count):
            d_z, d_h = (
                1 - u[i] @ v[j] / np.linalg.norm(u[i]) / np.linalg.norm(v[j]) for u, v in ((z[0], z[1]), h)
            )
            p = kappa(0, 20) if i == j else 0.0
            if len(structures) == 2:
                p += 0.5 * (1 - 3 / 10) * float(snapshot["knn"][i, j])
            own, q = kappa(d_z / 0.3, 20), kappa(d_h / 0.3, 10)
            p = (1 - 3 / 10) * p + (3 / 10 * own if clamp == "convex" else own)
            p = min(p, 1.0) if clamp == "clamp" else p
            total += -p * math.log(q) + 0.1 * abs(p - q)
    assert float(output.loss.detach()) == pytest.approx(total / count**2, rel=1e-4)


def test_beta_falls_from_one_to_its_floor(tmp_path):
    static, own = torch.full((2, 2), 0.5), [torch.eye(2)] * 2
    run = start(tmp_path, beta_min=0.25, target_clamp="none", centre_latents=False)
    similar = run.method.log_similarity(own, 100.0).exp()
    betas = [
        float(((run.method.target(static, own, Progress(step, 100, 10)) - similar) / static).mean())
        for step in (0, 10, 50, 75, 99)
    ]
    np.testing.assert_allclose(betas, [1.0, 0.9, 0.5, 0.25, 0.25], rtol=1e-5)


def test_without_a_neck_the_dynamic_target_is_of_the_hidden_layer(tmp_path):
    """The paper's graph set-up but for its size: BCE on L2, dynamic, both terms, latents of the last but one layer."""
    method = {"target": "dynamic", "neck": False, "kind": "bce", "distance": "l2", "sigma": 1.0}
    knn = {"kind": "knn", "k": 6, "weight": 0.1}
    points = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    edges = np.stack([np.arange(31), np.arange(1, 32)], axis=1)
    np.savez(tmp_path / "edges.npz", edges=edges)
    graph = {"kind": "graph", "length": "equal", "path": str(tmp_path / "edges.npz")}
    recipe = recipe_from(
        {
            "method": {"name": "genurl", "structures": [graph, knn], **method},
            "encoder": {"name": "mlp", "widths": [7, 6, 5, 4, 3], "inputs": 5},
        }
    )
    made = method_of(recipe, num_samples=32)
    x = torch.from_numpy(points[:8])
    z, h = made.embed([x])
    assert z[0].shape == (8, 4)
    assert h[0].shape == (8, 3)
    torch.testing.assert_close(made.encoder.layers[-1](z[0]), h[0])
    static, now = torch.rand(8, 8) / 2, Progress(3, 10, 5)
    centred = [z[0].detach() - z[0].detach().mean(dim=0)]
    expected = (0.7 * static + made.log_similarity(centred, 100.0).exp()).clamp(0, 1)
    torch.testing.assert_close(made.target(static, [z[0].detach()], now), expected)


def test_the_raw_input_counts_one_unless_it_stands_beside_instances():
    def weights(*structures):
        made = recipe_from({"method": {"name": "genurl", "structures": list(structures)}}).method.structures
        return [(s.alpha(Progress(0, 10, 5)), s.alpha(Progress(5, 10, 5))) for s in made if s.kind == "knn"]

    knn, instance = {"kind": "knn"}, {"kind": "instance"}
    assert weights(knn) == [(1, 1)]
    assert weights(knn, {"kind": "graph", "path": "edges.npz"}) == [(1, 1)]
    assert weights(instance, knn) == [pytest.approx((0.01, 0.005))]
    assert weights(instance, knn | {"weight": 0.5}) == [pytest.approx((0.5, 0.25))]
    assert weights(instance, knn | {"weight": 0.5, "weight_end": 0.5}) == [(0.5, 0.5)]


def test_the_target_has_no_gradient(tmp_path):
    run = start(tmp_path, target_clamp="none")
    z = [torch.randn(4, 6, requires_grad=True) for _ in range(2)]
    p = run.method.target(torch.eye(4), [x.detach() for x in z], Progress(0, 10, 5)).requires_grad_()
    similarity_loss(p, log_q=run.method.log_similarity(z, 100.0), kind="gkl").backward()
    assert p.grad is None
    assert all(x.grad.abs().sum() > 0 for x in z)  # through both arguments of d_Z


def test_all_pairs_of_both_views_leave_out_a_row_with_itself(tmp_path):
    run = start(tmp_path, pairs="all", target="static", kind="mse", structures=WITH_KNN)
    batch, snapshot = batch_of(run), read(run)
    output = run.method(batch, snapshot, Progress(0, 10, 5))
    h = torch.cat([run.method.neck(run.method.encoder(x)) for x in batch.views.values()]).detach()
    q = log_student_kernel(pairwise_distance(h, h, "1-cos") / 0.1, 100.0).exp().numpy()
    count, knn = len(batch.index), snapshot["knn"].numpy()
    squares = []
    for i in range(2 * count):
        for j in range(2 * count):
            if i != j:
                p = (kappa(0, 100) if i % count == j % count else 0) + 0.5 * knn[i % count, j % count]
                squares.append((min(p, 1.0) - q[i, j]) ** 2)
    assert float(output.loss.detach()) == pytest.approx(np.mean(squares), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"target": "static"},
        {"beta_min": 0.99},
        {"kind": "mse"},
        {"kind": "kl"},
        {"kind": "bce"},
        {"gamma": 0.5},
        {"reduction": "sum"},
        {"distance": "chord"},
        {"distance": "literal"},
        {"distance": "l2"},
        {"nu_x": 1.0},
        {"nu_z": 1.0},
        {"sigma": 1.0},
        {"mu": 0.1},
        {"pairs": "all"},
        {"target_clamp": "convex"},
        {"centre_latents": False},
        {"head_norm": True},
        {"structures": WITH_KNN},
        {"neck": False, "target": "static"},
    ],
    ids=str,
)
def test_every_setting_changes_the_losses(tmp_path_factory, change, default_losses):
    losses = contract.steps(start(tmp_path_factory.mktemp("run"), **change), 3)
    assert losses[1:] != default_losses[1:]
    assert all(math.isfinite(loss) for loss in losses)


def test_a_target_beyond_one_is_clamped_unless_said_otherwise(tmp_path):
    """As ReLU outputs are, far from centred: positives' p_{Z,l} comes on top of β."""
    losses = []
    for clamp in ("clamp", "none"):
        (tmp_path / clamp).mkdir()
        run = start(tmp_path / clamp, target_clamp=clamp, centre_latents=False)
        losses.append(contract.steps(run, 3))
    assert losses[0][1:] != losses[1][1:]


@pytest.fixture(scope="module")
def default_losses(tmp_path_factory):
    return contract.steps(start(tmp_path_factory.mktemp("run")), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        {"k": 7},
        {"neighbours": 3},
        {"scale": "statistics"},
        {"sigma": 0.5},
        {"symmetry": "none"},
        {"weight": 0.1},
    ],
    ids=str,
)
def test_every_setting_of_a_knn_structure_changes_the_target(tmp_path, setting):
    targets = []
    for folder, changed in (("a", {}), ("b", setting)):
        (tmp_path / folder).mkdir()
        run = start(tmp_path / folder, structures=[{"kind": "instance"}, WITH_KNN[1] | changed])
        batch = batch_of(run)
        targets.append(run.method.static_target(batch, read(run), run.progress))
    assert not torch.equal(*targets)
