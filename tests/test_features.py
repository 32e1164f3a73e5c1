"""Hand-crafted features against slow references, on odd sizes, constant images and images that are too small."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysurl import features
from raysurl.errors import InputError


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_gradients(x):
    """Sobel correlations of one plane with zero padding, pixel by pixel."""
    padded, across, down = np.pad(x, 1), np.zeros_like(x), np.zeros_like(x)
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for i, k in np.ndindex(x.shape):
        across[i, k] = (padded[i : i + 3, k : k + 3] * kernel).sum()
        down[i, k] = (padded[i : i + 3, k : k + 3] * kernel.T).sum()
    return across, down


def slow_hog(x, bins, cell, interp):
    across, down = slow_gradients(x)
    out = np.zeros((bins, x.shape[0] // cell, x.shape[1] // cell))
    for i, k in np.ndindex(out.shape[1] * cell, out.shape[2] * cell):
        magnitude = math.hypot(across[i, k], down[i, k])
        position = math.atan2(across[i, k], down[i, k]) / math.pi * bins
        low = math.floor(position)
        f = position - low
        shares = (magnitude, 1 - magnitude) if interp == "official" else (magnitude * (1 - f), magnitude * f)
        for which, share in zip((low, math.ceil(position)), shares, strict=True):
            out[which % bins, i // cell, k // cell] += share / cell**2
    return out


@pytest.mark.parametrize("interp", ["official", "true"])
@pytest.mark.parametrize(("bins", "cell", "size"), [(24, 8, (17, 26)), (9, 3, (10, 7)), (1, 4, (4, 4))])
def test_hog_equals_a_slow_reference(interp, bins, cell, size):
    x = images(2, 3, *size)
    ours = features.hog(x.double(), bins=bins, cell=cell, interp=interp)
    for b, c in np.ndindex(2, 3):
        slow = slow_hog(x[b, c].double().numpy(), bins, cell, interp)
        np.testing.assert_allclose(ours[b, c * bins : (c + 1) * bins], slow, atol=1e-12)


def test_hog_of_all_pixels_keeps_the_magnitude_or_counts_each_pixel_once():
    x = images(1, 1, 16, 16)
    across, down = slow_gradients(x[0, 0].numpy())
    total = features.hog(x, interp="true").sum() * 64
    assert float(total) == pytest.approx(float(np.hypot(across, down).sum()), rel=1e-5)
    torch.testing.assert_close(features.hog(x).sum(dim=1), torch.ones(1, 2, 2))


@pytest.mark.parametrize(("window", "size"), [(3, (5, 8)), (5, (3, 7)), (1, (2, 2))])
def test_local_std_equals_a_slow_reference(window, size):
    x = images(2, 1, *size)
    ours, padded = (
        features.local_std(x, window=window),
        np.pad(x[:, 0].numpy(), [(0, 0)] + [(window // 2,) * 2] * 2, "reflect"),
    )
    for b, i, k in np.ndindex(2, *size):
        slow = math.sqrt(padded[b, i : i + window, k : k + window].astype(np.float64).var() + 1e-8)
        assert float(ours[b, 0, i, k]) == pytest.approx(slow, abs=1e-3 if window == 1 else 1e-5)


def test_sobel_is_of_the_channel_mean():
    x = images(1, 3, 5, 6)
    across, down = slow_gradients(x[0].mean(dim=0).numpy())
    np.testing.assert_allclose(features.sobel(x)[0], np.stack([across, down]), atol=1e-5)


@pytest.mark.parametrize(
    ("J", "L", "size"), [(2, 8, (33, 35)), (3, 4, (40, 37)), (1, 6, (17, 9)), (2, 8, (8, 8))]
)
def test_scattering_equals_kymatio(J, L, size):
    frontend = pytest.importorskip("kymatio.scattering2d.frontend.torch_frontend")
    x = images(2, 1, *size)
    expected = frontend.ScatteringTorch2D(J=J, shape=size, L=L)(x)
    ours = features.scattering(x, J=J, L=L)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_scattering_of_a_constant_is_the_constant_in_order_zero_and_nothing_else():
    out = features.scattering(torch.full((1, 1, 12, 13), 3.0))
    assert out.shape == (1, 1, 81, 3, 3)
    torch.testing.assert_close(out[0, 0, 0], torch.full((3, 3), 3.0), rtol=1e-4, atol=0)
    assert float(out[0, 0, 1:].abs().max()) < 1e-5


def test_scattering_answers_a_wave_at_its_own_octave_and_angle():
    """A wave of frequency 3π/4 along the rows or the columns excites the wavelet of octave 0 that runs that way."""
    wave = torch.cos(0.75 * math.pi * torch.arange(32.0)).expand(32, 32)
    first = [features.scattering(x[None, None])[0, 0, 1:17].mean(dim=(1, 2)) for x in (wave, wave.T)]
    down, along = int(first[1].argmax()), int(first[0].argmax())
    assert down < 8
    assert along < 8
    assert (down - along) % 8 == 4  # a right angle


@settings(max_examples=15)
@given(
    height=st.integers(5, 20), width=st.integers(5, 20), channels=st.integers(1, 4), scale=st.floats(0.1, 10)
)
def test_scattering_has_its_shape_is_homogeneous_and_treats_channels_alone(height, width, channels, scale):
    x = images(2, channels, height, width)
    out = features.scattering(x)
    assert out.shape == (2, channels, 81, height // 4, width // 4)
    torch.testing.assert_close(features.scattering(x * scale), out * scale, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(features.scattering(x[1:, -1:]), out[1:, -1:], rtol=1e-4, atol=1e-5)


def test_scattering_does_not_depend_on_how_the_batch_is_cut(monkeypatch):
    x = images(5, 3, 9, 10)
    whole = features.scattering(x)
    monkeypatch.setattr(features, "CHUNK_CPU", 1)
    torch.testing.assert_close(features.scattering(x), whole, rtol=0, atol=1e-6)


EVERY = [features.hog, features.local_std, features.scattering, features.sobel]


@pytest.mark.parametrize("feature", EVERY)
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_constant_and_single_channel_images_give_finite_features(feature, value):
    out = feature(torch.full((2, 1, 9, 8), value))
    assert out.isfinite().all()
    assert len(out) == 2


@pytest.mark.parametrize("feature", EVERY)
def test_features_are_fp32_also_under_autocast_and_fp64_of_fp64(feature):
    x = images(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = feature(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, feature(x), rtol=0, atol=1e-6)
    assert feature(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: features.hog(images(1, 3, 7, 20)), "at least 8×8"),
        (lambda: features.hog(images(1, 3, 8, 8), interp="linear"), "official or true"),
        (lambda: features.hog(images(1, 3, 8, 8), bins=0), "bins ≥ 1"),
        (lambda: features.local_std(images(1, 3, 1, 9)), "at least 2×2"),
        (lambda: features.local_std(images(1, 3, 9, 9), window=4), "odd window"),
        (lambda: features.scattering(images(1, 3, 4, 9)), "at least 5×5"),
        (lambda: features.scattering(images(1, 3, 9, 9), J=0), "J ≥ 1"),
        (lambda: features.scattering(images(3, 32)), r"\(B, C, H, W\)"),
        (lambda: features.sobel(images(0, 3, 8, 8)), r"\(0, 3, 8, 8\)"),
    ],
)
def test_what_has_no_features_is_one_sentence(call, said):
    with pytest.raises(InputError, match=said):
        call()
