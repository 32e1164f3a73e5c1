"""Hand-crafted features of image batches: orientation histograms, local deviation, scattering, Sobel.

Letters: B images, C channels, H×W pixels, J scales, L angles. All take float images (B, C, H, W) of any range, on any
device, compute in fp32 (fp64 for fp64), and raise InputError for another shape or for images too small to have one
value. None has weights; filters are made once per size and device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raysurl.errors import InputError

PI = 3.1415  # in the scale of kymatio's filters, whose numbers ours are to be
CHUNK_CPU, CHUNK_GPU = (
    2**16,
    2**26,
)  # values of one band of wavelets at a time: a core's cache; a GPU's memory


def hog(
    images: Tensor, *, bins: int = 24, cell: int = 8, interp: Literal["official", "true"] = "official"
) -> Tensor:
    """Histograms of gradient orientation (Dalal and Triggs) of each channel: (B, C·bins, H // cell, W // cell).

    Gradients by Sobel filters with zero padding, angles modulo 180°, histograms averaged over cells of `cell` pixels,
    no block normalisation; pixels beyond the last whole cell are left out. A pixel between two bins gives the lower
    one m·(1 − f) and the upper one m·f of its magnitude m (`true`), f being how far it stands from the lower; or m
    and 1 − m, whatever f (`official`: MV-MR's code, which made the paper's numbers, and by which every pixel
    counts 1 in all and a flat one 1 in bin 0). InputError for images smaller than a cell.
    """
    if bins < 1 or cell < 1 or interp not in ("official", "true"):
        raise InputError(
            f"hog needs bins ≥ 1, cell ≥ 1 and interp official or true, got {bins}, {cell} and {interp!r}"
        )
    images = _checked(images, cell, "hog")
    batch, channels, height, width = images.shape
    rows, columns = height // cell, width // cell
    whole = (..., slice(rows * cell), slice(columns * cell))
    across, down = (g.flatten(0, 1)[whole] for g in _gradients(images))
    magnitude = torch.sqrt(across**2 + down**2)
    phase = torch.atan2(across, down) * (bins / math.pi)
    lower = phase.floor()
    fraction = phase - lower
    if interp == "true":
        upper, low_share, high_share = lower + 1, magnitude * (1 - fraction), magnitude * fraction
    else:
        upper, low_share, high_share = phase.ceil(), magnitude, 1 - magnitude

    cells = torch.arange(rows, device=images.device).repeat_interleave(cell)[:, None] * columns
    cells = cells + torch.arange(columns, device=images.device).repeat_interleave(cell)
    histogram = images.new_zeros(batch * channels, bins * rows * columns)
    for which, share in ((lower, low_share), (upper, high_share)):
        slots = which.long().remainder(bins) * (rows * columns) + cells
        histogram = histogram.scatter_add(1, slots.flatten(1), share.flatten(1))
    return (histogram / cell**2).view(batch, channels * bins, rows, columns)


def local_std(images: Tensor, *, window: int = 3) -> Tensor:
    """Standard deviation in the window around each pixel (MV-MR's LSD filter): (B, C, H, W).

    √(mean(x²) − mean(x)² + 1e-8) over `window`² pixels, borders reflected; 0 where rounding makes the root undefined.
    InputError for an even window, or one that reaches further than the image.
    """
    if window < 1 or window % 2 == 0:
        raise InputError(f"local_std needs an odd window, got {window}")
    images = _checked(images, window // 2 + 1, "local_std")
    padded = F.pad(images, [window // 2] * 4, mode="reflect")
    variance = _box(padded**2, window) - _box(padded, window) ** 2 + 1e-8
    undefined = variance <= 0
    return variance.masked_fill(undefined, 1).sqrt().masked_fill(undefined, 0)


def sobel(images: Tensor) -> Tensor:
    """Sobel gradients of the mean over channels, zero padding: (B, 2, H, W).

    Super-AND's input: first [[1, 0, −1], [2, 0, −2], [1, 0, −1]], then [[1, 2, 1], [0, 0, 0], [−1, −2, −1]], as
    correlations.
    """
    gray = _checked(images, 1, "sobel").mean(dim=1, keepdim=True)
    return torch.cat(_gradients(gray), dim=1)


def scattering(images: Tensor, *, J: int = 2, L: int = 8) -> Tensor:
    """Scattering transform of each channel (Mallat; ScatNet): (B, C, 1 + JL + L²J(J−1)/2, H // 2^J, W // 2^J).

    Orders 0, 1 and 2 of moduli of Morlet wavelets at J octaves and L angles, averaged by a Gaussian of scale 2^J:
    x∗φ, |x∗ψ₁|∗φ, ||x∗ψ₁|∗ψ₂|∗φ with ψ₂ coarser than ψ₁. Filters, reflecting border and channel order are those of
    kymatio's Scattering2D, which MV-MR uses. Wavelets are applied by FFT and decimated by folding frequencies; the
    Gaussian is separable, so averaging is two small matrix products. InputError for images of 2^J pixels or fewer.
    """
    if J < 1 or L < 1:
        raise InputError(f"scattering needs J ≥ 1 and L ≥ 1, got {J} and {L}")
    images = _checked(images, 2**J + 1, "scattering")
    batch, channels, height, width = images.shape
    planes = images.reshape(batch * channels, 1, height, width)
    bank = _bank(height, width, J, L, images.device, images.dtype)
    budget = CHUNK_CPU if images.device.type == "cpu" else CHUNK_GPU
    step = max(1, budget // (L * bank.wavelets[0].shape[-2] * bank.wavelets[0].shape[-1]))
    with torch.autocast(images.device.type, enabled=False):
        parts = [_scatter(part, bank) for part in planes.split(step)]
    return torch.cat(parts).unflatten(0, (batch, channels))


# -------------------------------------------------------------------- images


def _checked(images: Tensor, least: int, name: str) -> Tensor:
    if images.dim() != 4 or not images.numel() or min(images.shape[2:]) < least:
        raise InputError(
            f"{name} needs images (B, C, H, W) of at least {least}×{least} pixels, got {tuple(images.shape)}"
        )
    return images if images.dtype == torch.float64 else images.float()


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel correlations across and down, (B, C, H, W) each, zero padding."""
    x = F.pad(images, [1, 1, 1, 1])
    smooth_rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    smooth_columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return smooth_rows[..., :-2] - smooth_rows[..., 2:], smooth_columns[..., :-2, :] - smooth_columns[
        ..., 2:, :
    ]


def _box(padded: Tensor, window: int) -> Tensor:
    """Mean over each whole window."""
    height, width = padded.shape[-2] - window + 1, padded.shape[-1] - window + 1
    rows = sum((padded[..., i : i + height, :] for i in range(1, window)), padded[..., :height, :])
    total = sum((rows[..., i : i + width] for i in range(1, window)), rows[..., :width])
    return total / window**2


# -------------------------------------------------------------------- scattering


@dataclass(frozen=True)
class _Bank:
    """`wavelets[j]` (L, M, N) real, in frequency; `average_rows[j]`, `average_columns[j]` (out, M / 2^j)."""

    pad: tuple[int, int, int, int]
    wavelets: tuple[Tensor, ...]
    average_rows: tuple[Tensor, ...]
    average_columns: tuple[Tensor, ...]


def _scatter(planes: Tensor, bank: _Bank) -> Tensor:
    """Coefficients (n, K, h, w) of planes (n, 1, H, W)."""
    scales = len(bank.wavelets)
    planes = F.pad(planes, bank.pad, mode="reflect")
    spectrum = torch.fft.fft2(planes)
    orders: list[list[Tensor]] = [[_average(planes, bank, 0)], [], []]
    for j, wavelets in enumerate(bank.wavelets):
        first = _band(spectrum, wavelets, 2**j)  # (n, L, M / 2^j, N / 2^j)
        orders[1].append(_average(first, bank, j))
        if j + 1 == scales:
            break
        spectra = torch.fft.fft2(first)[:, :, None]
        second = [
            _average(_band(spectra, _low(bank.wavelets[k], 2**j), 2 ** (k - j)), bank, k)
            for k in range(j + 1, scales)
        ]
        orders[2].append(torch.stack(second, dim=2).flatten(1, 3))
    return torch.cat([part for order in orders for part in order], dim=1)


def _band(spectrum: Tensor, wavelets: Tensor, stride: int) -> Tensor:
    """|x ∗ ψ| at every `stride`-th pixel, from the spectra of x (…, 1, M, N) and real ψ (L, M, N)."""
    if stride == 1:
        return torch.fft.ifft2(spectrum * wavelets).abs()
    height, width = wavelets.shape[-2] // stride, wavelets.shape[-1] // stride
    folded = None  # decimation in space is the mean over the frequencies that fall together
    for i in range(stride):
        for k in range(stride):
            part = (..., slice(i * height, (i + 1) * height), slice(k * width, (k + 1) * width))
            term = spectrum[part] * (wavelets[part] / stride**2)
            folded = term if folded is None else folded.add_(term)
    assert folded is not None
    return torch.fft.ifft2(folded).abs()


def _average(x: Tensor, bank: _Bank, j: int) -> Tensor:
    """x ∗ φ at every 2^J-th pixel of the image, without the padding."""
    return bank.average_rows[j] @ x @ bank.average_columns[j].T


def _low(spectrum: Tensor, factor: int) -> Tensor:
    """The low frequencies of a filter (…, M, N) for a signal decimated by `factor`."""
    for dim in (-2, -1):
        size = spectrum.shape[dim]
        kept = size // factor
        low, high = (spectrum.narrow(dim, start, kept // 2) for start in (0, size - kept // 2))
        spectrum = torch.cat([low, high], dim=dim)
    return spectrum


@lru_cache(maxsize=8)
def _bank(height: int, width: int, J: int, L: int, device: torch.device, dtype: torch.dtype) -> _Bank:
    """Filters for images of height×width, padded to a multiple of 2^J that leaves a whole step on each side."""
    with torch.inference_mode(False), torch.no_grad():
        padded = [((side + 2**J) // 2**J + 1) * 2**J for side in (height, width)]
        top, left = (padded[0] - height) // 2, (padded[1] - width) // 2
        pad = (left, padded[1] - width - left, top, padded[0] - height - top)
        wavelets = tuple(_morlets(padded[0], padded[1], j, L).to(device, dtype) for j in range(J))
        averages = [tuple(_average_matrix(side, j, J).to(device, dtype) for j in range(J)) for side in padded]
    return _Bank(pad, wavelets, *averages)


def _folded(values: Tensor, dim: int) -> Tensor:
    """Sum of the five periods of a function sampled on −2M … 3M − 1."""
    return values.unflatten(dim, (5, -1)).sum(dim)


def _morlets(rows: int, columns: int, j: int, L: int) -> Tensor:
    """Spectra (L, M, N) of Morlet wavelets of octave j, real: a wave of frequency 3π/4·2^−j under a Gaussian of
    σ = 0.8·2^j, longer across the wave by L/4, less the Gaussian that makes its mean zero."""
    sigma, frequency, slant = 0.8 * 2**j, 0.75 * math.pi / 2**j, 4 / L
    y = torch.arange(-2 * rows, 3 * rows, dtype=torch.float64)[:, None]
    x = torch.arange(-2 * columns, 3 * columns, dtype=torch.float64)
    spectra = []
    for angle in range(L):
        theta = (int(L - L / 2 - 1) - angle) * math.pi / L
        along = y * math.cos(theta) + x * math.sin(theta)
        beside = x * math.cos(theta) - y * math.sin(theta)
        envelope = torch.exp(-(along**2 + (slant * beside) ** 2) / (2 * sigma**2))
        envelope = envelope * (slant / (2 * PI * sigma**2))
        wave = torch.polar(envelope, frequency * along)
        wave, envelope = (_folded(_folded(v, 1), 0) for v in (wave, envelope))
        spectra.append(torch.fft.fft2(wave - envelope * (wave.sum() / envelope.sum())).real)
    return torch.stack(spectra)


def _average_matrix(size: int, j: int, J: int) -> Tensor:
    """(size / 2^J − 2, size / 2^j): the Gaussian of scale 2^J, σ = 0.8·2^(J−1), for a signal decimated by 2^j.

    One row per 2^J pixels, without the first and the last, which lie in the padding.
    """
    sigma, length = 0.8 * 2 ** (J - 1), size // 2**j
    x = torch.arange(-2 * size, 3 * size, dtype=torch.float64)
    gaussian = _folded(torch.exp(-(x**2) / (2 * sigma**2)), 0) / (math.sqrt(2 * PI) * sigma)
    spectrum = torch.fft.fft(gaussian).real
    spectrum = torch.cat([spectrum[: length - length // 2], spectrum[size - length // 2 :]])
    kernel = torch.fft.ifft(spectrum).real
    shift = torch.arange(0, length, 2 ** (J - j))[1:-1, None] - torch.arange(length)
    return kernel[shift % length]
