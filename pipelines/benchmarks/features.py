"""Images per second of the hand-crafted features, beside scikit-image's HOG and kymatio's scattering.

Colour images of 32 and 96 px, one thread (`threads=`) on a CPU, or `device=cuda`. scikit-image runs image by image, on
float64, with as many bins, the same cells and blocks of one cell: the nearest to ours that it has. kymatio runs on the
same batch as ours, and the largest difference of the two is shown. Libraries take turns; a row is the median of `runs`
rounds, and the range.

The floor of scattering with J=2, L=8, per channel of M² padded pixels: 9 transforms and 8 inverses of M² points and
72 inverses of (M/2)², each 5·n·log₂n operations for n points: 2.7 MFLOP at M = 40 and 23 MFLOP at M = 104, thrice for
colour. A core that does 4 GFLOP/s of such small transforms makes 500 and 57 images a second, one of 10 1,240 and 142.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raysurl import features
from raysurl.errors import InputError
from raysurl.recipe import yaml_argument

Make = Callable[[], Tensor]
SIZES = {32: 64, 96: 16}  # pixels -> images per call
KYMATIO = "kymatio.scattering2d.frontend.torch_frontend"  # not kymatio.torch, which needs an older SciPy


def main(arguments: list[str]) -> None:
    """`features [runs=5] [threads=1] [device=cpu]`."""
    given = dict(yaml_argument(a) for a in arguments)
    runs, threads = (int(given.pop(k, d)) for k, d in (("runs", 5), ("threads", 1)))
    device = torch.device(str(given.pop("device", "cpu")))
    if given:
        raise InputError(f"{', '.join(given)} is not a setting; there are runs, threads and device")
    torch.set_num_threads(threads)
    print(f"median of {runs} runs, {threads} thread(s), {device}")
    for size, count in SIZES.items():
        count = count if device.type == "cpu" else 256
        images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        cases: dict[str, Make] = {
            "hog": partial(features.hog, images),
            "hog, true interpolation": partial(features.hog, images, interp="true"),
            "local_std": partial(features.local_std, images),
            "scattering": partial(features.scattering, images),
            **others(images),
        }
        measure(cases, size, count, runs)


def others(images: Tensor) -> dict[str, Make]:
    """The same features by other libraries, of those that are installed."""
    cases: dict[str, Make] = {}
    if images.device.type != "cpu":
        print("scikit-image is left out: it has no GPU")
    elif importlib.util.find_spec("skimage"):
        from skimage.feature import hog

        arrays = images.double().permute(0, 2, 3, 1).numpy()
        shape = {"orientations": 24, "pixels_per_cell": (8, 8), "cells_per_block": (1, 1)}
        cases["scikit-image hog"] = lambda: torch.from_numpy(
            np.stack([hog(image[..., c], **shape) for image in arrays for c in range(3)])
        )
    else:
        print("scikit-image is left out: it is not installed")
    if importlib.util.find_spec("kymatio"):
        frontend = importlib.import_module(KYMATIO)
        transform = frontend.ScatteringTorch2D(J=2, shape=images.shape[2:], L=8).to(images.device)
        cases["kymatio scattering"] = lambda: transform(images)
        difference = float((transform(images) - features.scattering(images)).abs().max())
        print(f"{images.shape[-1]} px: scattering differs from kymatio's by at most {difference:.1e}")
    else:
        print("kymatio is left out: it is not installed")
    return cases


def measure(cases: dict[str, Make], size: int, count: int, runs: int) -> None:
    """Print images per second of each case."""
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(runs + 1):  # the first round warms up caches and filters
        for name, make in cases.items():
            since = time.perf_counter()
            make().sum().item()  # waits for the device
            if run:
                speeds[name].append(count / (time.perf_counter() - since))
    for name, values in speeds.items():
        spread = f"{min(values):.0f}–{max(values):.0f}"
        print(f"{size} px  {name:24} {statistics.median(values):9.0f} images/s ({spread})")
