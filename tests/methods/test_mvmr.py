"""Distance correlation, and MV-MR beyond the contract: its switches, its representations, the authors' sign."""

import contract
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl import method
from raysurl.errors import InputError
from raysurl.functional import centred_distances, correlation_of_distances, distance_correlation
from raysurl.method import Batch, Progress
from raysurl.methods.mvmr import FEATURES, Representation
from raysurl.recipe import load_recipe
from raysurl.train import trainer


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow(x, y, unbiased=False):
    """Distance correlation in loops and fp64; the U-statistic by its definition."""
    n, centred = len(x), []
    for z in (x, y):
        z = z.reshape(n, -1).astype(np.float64)
        d = np.array([[np.linalg.norm(a - b) for b in z] for a in z])
        c = np.zeros((n, n))
        for i, k in np.ndindex(n, n):
            if unbiased and i != k:
                c[i, k] = d[i, k] - (d[i].sum() + d[k].sum()) / (n - 2) + d.sum() / ((n - 1) * (n - 2))
            elif not unbiased:
                c[i, k] = d[i, k] - d[i].mean() - d[k].mean() + d.mean()
        centred.append(c)
    a, c = centred
    return (a * c).mean() / np.sqrt((a * a).mean() * (c * c).mean())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(4, 12),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    unbiased=st.booleans(),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    offset=st.sampled_from([0.0, 30.0]),
)
def test_distance_correlation_equals_a_slow_reference_at_any_scale(
    seed, count, widths, unbiased, scale, offset
):
    x, y = rows(count, widths[0], 2, seed=seed), rows(count, widths[1], seed=seed + 1)
    y[:, 0] += x[:, 0, 0]
    x[1] = x[0]  # a pair at distance zero
    x = x + offset
    ours = distance_correlation(x * scale, y, unbiased=unbiased)
    assert float(ours) == pytest.approx(slow((x * scale).numpy(), y.numpy(), unbiased), abs=2e-5)


def test_wide_rows_with_a_large_mean_keep_their_digits():
    x, y = rows(32, 3000) + 100, rows(32, 3000, seed=1)
    y += 0.3 * x
    assert float(distance_correlation(x, y)) == pytest.approx(slow(x.numpy(), y.numpy()), rel=1e-4)


@pytest.mark.parametrize("form", [{}, {"unbiased": True}, {"sqrt": True}, {"sqrt": True, "clamp": 1e-4}])
def test_gradient_is_right_and_defined_where_rows_are_equal(form):
    x, y = rows(6, 3, dtype=torch.float64), rows(6, 2, seed=1, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda u, v: distance_correlation(u, v, **form), (x.requires_grad_(), y.requires_grad_())
    )
    for width in (3, 2000):
        twins = rows(8, width)
        twins[3] = twins[5]
        twins.requires_grad_()
        distance_correlation(twins, rows(8, 4, seed=1), **form).backward()
        assert twins.grad.isfinite().all()
        assert twins.grad.abs().sum() > 0


@pytest.mark.parametrize("form", [{}, {"unbiased": True}, {"sqrt": True}, {"sqrt": True, "clamp": 1e-4}])
@pytest.mark.parametrize("width", [3, 2000])
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_collapsed_batch_has_correlation_and_gradient_zero(form, width, noise):
    x = (rows(1, width).expand(6, -1) * (1 + noise * rows(6, 1, seed=2))).clone().requires_grad_()
    value = distance_correlation(x, rows(6, 4, seed=1), **form)
    value.backward()
    assert value.item() == 0
    assert x.grad.abs().max() == 0
    assert distance_correlation(x, x, **form).item() == 0


def test_the_unbiased_form_is_near_zero_for_independent_rows_and_the_papers_is_not():
    x, y = rows(64, 128), rows(64, 512, seed=1)
    assert float(distance_correlation(x, y)) > 0.8
    assert abs(float(distance_correlation(x, y, unbiased=True))) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "form", "said"),
    [
        (rows(1, 4), rows(1, 3), {}, "at least 2 rows"),
        (rows(3, 4), rows(3, 3), {"unbiased": True}, "at least 4 rows"),
        (rows(5, 4), rows(6, 4), {}, "as many rows"),
        (rows(5, 0), rows(5, 4), {}, "at least 2 rows"),
        (torch.tensor(1.0), torch.tensor(2.0), {}, "at least 2 rows"),
        (rows(5, 4), rows(5, 4), {"unbiased": True, "sqrt": True}, "no root"),
    ],
)
def test_what_has_no_distance_correlation_is_one_sentence(x, y, form, said):
    with pytest.raises(InputError, match=said):
        distance_correlation(x, y, **form)


def test_a_nan_is_not_hidden_and_bf16_is_computed_in_fp32():
    broken = rows(5, 4)
    broken[2, 1] = torch.nan
    assert distance_correlation(broken, rows(5, 3), sqrt=True).isnan()
    x, y = rows(8, 1500), rows(8, 1500, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value = distance_correlation(x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance_correlation(x, y))


def losses(path, **changes):
    """Losses of three steps from the same initial weights."""
    run = contract.start(contract.recipe_for("mvmr", method=changes), path)
    return contract.steps(run, 3)


SWITCHES = [
    *({"features": [f for f in FEATURES if f != left_out]} for left_out in FEATURES),
    *({"feature_weights": {name: 0.5}} for name in FEATURES),
    {"features": []},
    {"mse_weight": 0.0},
    {"std_weight": 0.0},
    {"dcor_weight": 0.0},
    {"margin": 2.0},
    {"mse_reduction": "sum_dim"},
    {"l3_sign": "official"},
    {"dcor_sqrt": True},
    {"dcor_unbiased": True},
    {"dcor_clamp": 0.1},
    {"dcor_clamp": 0.1, "divisor": 32.0},
    {"hog_interp": "true"},
    {"hog_bins": 9},
    {"hog_cell": 4},
    {"local_std_window": 5},
    {"projector": [16]},
    {"projector": []},
]


@pytest.fixture(scope="module")
def default_losses(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("default") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_changes_the_losses(changes, default_losses, tmp_path):
    changed = losses(tmp_path / "run", **changes)
    assert all(np.isfinite(changed))
    assert all(abs(a - b) > 1e-5 for a, b in zip(changed, default_losses, strict=True)), changed


def first_output(tmp_path, **changes):
    run = contract.start(contract.recipe_for("mvmr", method=changes), tmp_path / "run")
    ((micro_batches, _),) = run.loader.steps(0, 1)
    batch = run.loader.to_batch(micro_batches[0])
    return run.method, batch, run.method(batch, {}, run.progress)


def test_the_loss_is_the_sum_of_its_terms_and_each_feature_is_of_the_original(tmp_path):
    model, batch, output = first_output(tmp_path, feature_weights={"hog": 0.25})
    log = output.logs
    l3 = sum((0.25 if name == "hog" else 1.0) * (1 - log[f"dcor_{name}"]) for name in FEATURES)
    torch.testing.assert_close(log["l3"], l3)
    torch.testing.assert_close(output.loss.detach(), log["l1"] + log["l2"] + log["l3"])
    z = model.projector(model.encoder(batch.views["augmented"]))
    pixels = distance_correlation(z, batch.views["original"]).detach()
    torch.testing.assert_close(log["dcor_pixels"], pixels)
    assert not torch.equal(batch.views["augmented"], batch.views["feature_augmented"])


def test_gradients_flow_through_both_branches_and_not_into_the_features(tmp_path):
    model, batch, _ = first_output(tmp_path)
    views = {name: x.clone().requires_grad_() for name, x in batch.views.items()}
    model(Batch(batch.index, views), {}, Progress(0, 2, 1)).loss.backward()
    assert views["original"].grad.abs().sum() > 0
    assert views["augmented"].grad.abs().sum() > 0
    assert views["feature_augmented"].grad is None


def test_a_teachers_embedding_is_one_more_representation(tmp_path):
    model, batch, output = first_output(tmp_path)
    model.representations.append(
        Representation("teacher", 2.0, lambda views: views["original"].mean(dim=(2, 3)))
    )
    more = model(batch, {}, Progress(0, 2, 1))
    added = 2 * (1 - more.logs["dcor_teacher"])
    torch.testing.assert_close(more.logs["l3"], output.logs["l3"] + added)


def test_collapsed_embeddings_give_a_finite_loss_and_gradient(tmp_path):
    model, batch, _ = first_output(tmp_path)
    views = {name: torch.full_like(x, 0.5).requires_grad_() for name, x in batch.views.items()}
    output = model(Batch(batch.index, views), {}, Progress(0, 2, 1))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert float(output.logs["dcor_pixels"]) == 0


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ("method.features=[pixels,pixels]", "twice"),
        ("method.feature_weights={hog: 2} method.features=[pixels]", "leaves out"),
        ("method.dcor_sqrt=true method.dcor_unbiased=true", "exclude each other"),
        ("method.local_std_window=4", "odd"),
        ("method.features=[sift]", "features"),
        ("method.projector=[0]", "projector"),
        ("train.allow_split_batch=false", "couples the whole batch"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings_, said):
    arguments = settings_.replace("method.features", "\nmethod.features").replace(" method", "\nmethod")
    with pytest.raises(InputError, match=said):
        load_recipe(["recipe=mvmr/stl10", *(a.strip() for a in arguments.split("\n") if a.strip())])


def test_recipes_have_the_papers_settings():
    for name, size in (("cifar10", 32), ("stl10", 96), ("imagenet", 224)):
        recipe = load_recipe([f"recipe=mvmr/{name}"])
        assert recipe.views.size == size
        assert recipe.train.optimizer.name == "adam"
        policies = recipe.view_policies()
        assert set(policies) == {"original", "augmented", "feature_augmented"}
        assert policies["original"].is_identity
        assert policies["augmented"].blur_p == 1
    stl = load_recipe(["recipe=mvmr/stl10"])
    config = method.load("mvmr").Config(name="mvmr")
    assert stl.method == config
    assert config.projector == (8192, 8192, 8192)
    assert (stl.train.epochs, stl.train.batch_size, stl.train.accumulate) == (1000, 4 * 256, 4)


def last_dcors(sign, seed, path):
    """Mean distance correlation to each feature over the last eight of 16 steps on digits of 16 px."""
    recipe = contract.recipe_for(
        "mvmr",
        encoder={"name": "convnet"},
        method={"l3_sign": sign, "projector": [128, 128]},
        data={"name": "digits", "limit": 320},
        views={"size": 16, "mean": [0.3] * 3, "std": [0.38] * 3},
        train={"batch_size": 32, "epochs": 4, "optimizer": {"name": "adam", "lr": 1e-3, "lr_batch": 0}},
        seed=seed,
    )
    run, logs = contract.start(recipe, path), []
    run.model.train()
    for micro_batches, _ in run.loader.steps(0, 16):
        logs.append(trainer.train_step(run, micro_batches))
        run.step += 1
    return {name: float(np.mean([float(log[f"dcor_{name}"]) for log in logs[-8:]])) for name in FEATURES}


@pytest.mark.slow
def test_the_authors_sign_ends_with_less_dependence_on_every_feature_than_the_papers(tmp_path):
    paper, official = (last_dcors(sign, 0, tmp_path / sign) for sign in ("paper", "official"))
    assert all(official[name] < paper[name] - 0.2 for name in FEATURES), (paper, official)


def test_centred_distances_of_one_side_can_be_used_again():
    x, y, z = rows(6, 3), rows(6, 4, seed=1), rows(6, 2, seed=2)
    a = centred_distances(x)
    for other in (y, z):
        value = correlation_of_distances(a, centred_distances(other))
        torch.testing.assert_close(value, distance_correlation(x, other))


@pytest.mark.parametrize("form", [{}, {"unbiased": True}, {"clamp": 1e-4}])
def test_blocks_of_columns_give_the_distances_of_the_whole(form):
    x = rows(9, 3001) + 5
    torch.testing.assert_close(
        centred_distances(iter(x.split(1100, dim=1)), **form),
        centred_distances(x, **form),
        rtol=1e-4,
        atol=1e-6,
    )
