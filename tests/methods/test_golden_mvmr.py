"""MV-MR and the hand-crafted features against values computed with the authors' code and with kymatio."""

import numpy as np
import pytest
import torch
from golden import load
from torch import nn

from raysurl import features
from raysurl.functional import distance_correlation, variance_hinge
from raysurl.method import Batch, Build, Progress
from raysurl.methods.mvmr import MVMR, mean_squared_error

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
CASES = ("small", "dependent", "wide", "scaled", "identical", "clamped")
OFFICIAL = {"dcor_sqrt": True, "dcor_clamp": 1e-4, "divisor": 32.0, "l3_sign": "official", "std_eps": 0.0}
NAMES = {
    "pixels": "full_img",
    "scattering": "full_img_scatnet",
    "augmented": "full_img_augment",
    "hog": "full_img_hog",
    "local_std": "full_img_std",
}


def load_case(case):
    """The golden values, if they have this case: the copy beside the tests leaves the large ones out."""
    g = load("mvmr_dcor")
    if f"{case}_x" not in g:
        pytest.skip(f"the case {case} is too large to be kept beside the tests (set RAYSURL_SHARED)")
    return g


@pytest.mark.parametrize("case", CASES)
def test_distance_correlation_of_the_paper(case):
    g = load_case(case)
    value = distance_correlation(torch.tensor(g[f"{case}_x"]), torch.tensor(g[f"{case}_z"]))
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value, g[f"{case}_paper_eq2_f64"], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_distance_correlation_of_the_authors_with_its_gradient(case, dtype):
    g = load_case(case)
    exact = dtype == "f64"
    x, z = (
        torch.tensor(g[f"{case}_{n}"]).to(torch.float64 if exact else torch.float32).requires_grad_()
        for n in "xz"
    )
    value = distance_correlation(x, z, sqrt=True, clamp=1e-4)
    (gradient,) = torch.autograd.grad(value, x)
    expected = g[f"{case}_official_{dtype}_grad_x"]
    np.testing.assert_allclose(value.detach(), g[f"{case}_official_{dtype}"], rtol=1e-12 if exact else 1e-5)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-12 if exact else 1e-4 * scale + 1e-7)


@pytest.mark.parametrize(("case", "bins"), [("nb24p8", 24), ("default", 10), ("constant", 24)])
def test_hog(case, bins):
    g = load("mvmr_hog")
    ours = features.hog(torch.tensor(g[f"{case}_x"]), bins=bins, cell=8)
    np.testing.assert_allclose(ours, g[f"{case}_out"], **TOLERANCE)


@pytest.mark.parametrize(("case", "window"), [("k3", 3), ("k5", 5), ("k3_const", 3)])
def test_local_std(case, window):
    g = load("mvmr_lsd")
    ours = features.local_std(torch.tensor(g[f"{case}_x"]), window=window)
    np.testing.assert_allclose(ours, g[f"{case}_out"], **TOLERANCE)


def test_scattering():
    g = load("mvmr_scattering")
    np.testing.assert_allclose(features.scattering(torch.tensor(g["x"])), g["out"], rtol=0, atol=1e-6)


def test_sobel():
    g = load("superand_sobel")
    np.testing.assert_allclose(features.sobel(torch.tensor(g["x"])), g["out"], **TOLERANCE)


class Fixed(nn.Module):
    """An encoder that answers its first and second call with given embeddings."""

    def __init__(self, *embeddings):
        super().__init__()
        self.embeddings = list(embeddings)

    def forward(self, x):
        return self.embeddings.pop(0)


def on_golden(g, **config):
    """The method whose embeddings are the golden ones, run on the golden images; its output, z̃ and z."""
    z_augmented, z = (torch.tensor(g[name]).requires_grad_() for name in ("z_aug", "z_orig"))
    build = Build(
        Fixed(z_augmented, z), 24, nn.BatchNorm1d, shuffle=False, num_samples=12, batch_size=12, seed=0
    )
    method = MVMR(MVMR.Config(projector=(), **config), build)
    images = torch.tensor(g["im_orig"])
    views = {"original": images, "augmented": images, "feature_augmented": images}
    return method, method(Batch(torch.arange(12), views), {}, Progress(0, 1, 1)), z_augmented, z


def test_total_loss_terms_and_gradient_are_the_authors():
    g = load("mvmr_total")
    _, output, z_augmented, z = on_golden(g, **OFFICIAL)
    for name, theirs in NAMES.items():
        np.testing.assert_allclose(output.logs[f"dcor_{name}"], g[f"official_DC_{theirs}"], **TOLERANCE)
    np.testing.assert_allclose(output.logs["mse"], g["official_MSE"], **TOLERANCE)
    np.testing.assert_allclose(1 - output.logs["dcor_views"], g["official_DC_zz"], **TOLERANCE)
    np.testing.assert_allclose(output.logs["std_hinge"], g["official_STD"], **TOLERANCE)
    np.testing.assert_allclose(output.loss.detach(), g["official_total"], rtol=1e-5, atol=1e-5)
    output.loss.backward()
    np.testing.assert_allclose(z_augmented.grad, g["grad_z_aug"], **TOLERANCE)
    np.testing.assert_allclose(z.grad, g["grad_z_orig"], **TOLERANCE)


def test_total_loss_is_the_papers():
    g = load("mvmr_total")
    _, output, _, _ = on_golden(g, mse_reduction="sum_dim")
    hinge = g["paper_eq5_aug"] + g["paper_eq5_orig"]
    dcors = {name: g[f"paper_dcor_{theirs}"] for name, theirs in NAMES.items()}
    expected = g["paper_eq4"] + hinge + 1 - g["paper_dcor_zz"] + sum(1 - d for d in dcors.values())
    for name, value in dcors.items():
        np.testing.assert_allclose(output.logs[f"dcor_{name}"], value, **TOLERANCE)
    np.testing.assert_allclose(output.logs["std_hinge"], hinge, **TOLERANCE)
    np.testing.assert_allclose(output.loss.detach(), expected, rtol=1e-5)


def test_terms_of_the_first_loss():
    g = load("mvmr_total")
    z_augmented, z = torch.tensor(g["z_aug"]), torch.tensor(g["z_orig"])
    np.testing.assert_allclose(mean_squared_error(z, z_augmented, "sum_dim"), g["paper_eq4"], rtol=1e-5)
    np.testing.assert_allclose(mean_squared_error(z, z_augmented, "mean"), g["official_MSE"], rtol=1e-5)
    np.testing.assert_allclose(variance_hinge(z_augmented), g["paper_eq5_aug"], rtol=1e-5)
    np.testing.assert_allclose(variance_hinge(z), g["paper_eq5_orig"], rtol=1e-5)


def test_the_methods_features_are_the_authors():
    g = load("mvmr_total")
    method, _, _, _ = on_golden(g, divisor=32.0)
    images = torch.tensor(g["im_orig"])
    views = {"original": images, "feature_augmented": images}
    for r in method.representations:
        ours = r.compute(views).flatten(1)
        np.testing.assert_allclose(ours, g[f"feat_{NAMES[r.name]}"], **TOLERANCE)
