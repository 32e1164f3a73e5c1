"""Signals of quality without labels: against their definitions by other routes, and what must not change them."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl.spectra import alpha_req, lidar, rankme


def rows_of(eigenvalues: np.ndarray, n: int, seed: int = 0) -> torch.Tensor:
    """Rows (n, D) whose covariance has these eigenvalues exactly, off the origin."""
    rng = np.random.default_rng(seed)
    d = len(eigenvalues)
    left = rng.normal(size=(n, d))
    left, _ = np.linalg.qr(left - left.mean(0))
    right, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return torch.from_numpy(left * np.sqrt(eigenvalues) @ right.T + 3)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("d", [4, 25, 128])
def test_alpha_req_finds_the_power_of_a_power_law(alpha: float, d: int) -> None:
    assert alpha_req(rows_of(np.arange(1, d + 1.0) ** -alpha, 400)) == pytest.approx(alpha, abs=1e-6)


def test_alpha_req_fits_the_tail_as_numpy_does() -> None:
    rng = np.random.default_rng(1)
    eigenvalues = np.sort(rng.lognormal(size=80))[::-1]
    j = np.arange(11, 51)
    # polyfit squares its weights
    slope, _ = np.polyfit(np.log(j), np.log(eigenvalues[10:50]), 1, w=np.sqrt(1 / j))
    assert alpha_req(rows_of(eigenvalues, 300)) == pytest.approx(-slope, rel=1e-6)


def test_the_first_directions_alone_do_not_change_alpha() -> None:
    eigenvalues = np.arange(1, 65.0) ** -1
    louder = np.where(np.arange(64) < 5, 50, 1) * eigenvalues
    assert alpha_req(rows_of(louder, 200)) == pytest.approx(alpha_req(rows_of(eigenvalues, 200)), abs=1e-6)


def lidar_by_scipy(views: np.ndarray) -> float:
    """Its eigenvalues are those of the pencil (Σ_b, Σ_w)."""
    q, n, d = views.shape
    means = views.mean(0)
    within = sum((views[k] - means).T @ (views[k] - means) for k in range(q)) / (n * (q - 1))
    within += 1e-4 * np.trace(within) / d * np.eye(d)
    between = np.cov(means.T)
    values = scipy.linalg.eigh(between, within, eigvals_only=True).clip(min=0)
    p = values / values.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("shape", [(2, 40, 6), (4, 300, 32), (3, 10, 24)])
def test_lidar_matches_the_generalised_eigenvalues(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    _, n, d = shape
    scale = np.linspace(0.1, 2, d)
    views = rng.normal(size=(1, n, d)) * scale + 0.3 * rng.normal(size=shape) @ rng.normal(size=(d, d))
    assert lidar(torch.from_numpy(views)) == pytest.approx(lidar_by_scipy(views), rel=1e-4)


def test_lidar_counts_what_tells_samples_apart_and_not_what_views_change() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, noise = torch.randn(2000, 4, generator=generator), torch.randn(8, 2000, 16, generator=generator)
    views = 0.01 * noise
    views[..., :4] += samples
    # large, but the same for no sample: RankMe counts them
    views[..., 4:] += noise[..., 4:] * 3
    assert lidar(views) == pytest.approx(4, abs=0.2)
    assert rankme(views[0]) > 12


@settings(max_examples=30)
@given(
    n=st.integers(2, 30),
    d=st.integers(1, 12),
    q=st.integers(2, 4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_all_stay_in_their_bounds_and_do_not_depend_on_the_scale(
    n: int, d: int, q: int, scale: float, seed: int
) -> None:
    views = torch.randn(q, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for found, scaled in (
        (lidar(views), lidar(views * scale)),
        (alpha_req(views[0]), alpha_req(views[0] * scale)),
    ):
        assert math.isfinite(found)
        assert scaled == pytest.approx(found, rel=1e-6, abs=1e-9)
    assert 1 <= lidar(views) <= min(n, d) + 1e-9


@pytest.mark.parametrize("rows", [torch.zeros(4, 3), torch.ones(4, 3), torch.ones(2, 1)])
def test_features_that_are_all_alike(rows: torch.Tensor) -> None:
    assert alpha_req(rows) == 0.0
    assert lidar(torch.stack([rows, rows])) == 1.0
