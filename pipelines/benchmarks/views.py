"""Views per second of one core: raysurl, torchvision v2, kornia and lightly side by side, one thread each.

All make the view `contrastive` (random resized crop of 0.2–1, flip, colour jitter 0.4/0.4/0.4/0.1 with
probability 0.8, grey 0.2, blur 0.5, normalisation), each in the form in which its documentation uses it: raysurl
and kornia on batches, torchvision on uint8 tensors one by one, lightly on Pillow images one by one; all end in one
float batch. Two cases: 32 px from images in memory, and two views of 224 px from each JPEG of 500×375, decoded
once by what the library uses (raysurl.data.decode and lightly: Pillow; torchvision and kornia: torchvision.io).
Libraries take turns within one process, and a row is the median of `runs` rounds.

The floor. A view of S px has 3·S² values: 3,072 at 32 px, 150,528 at 224 px. Bytes: reading uint8 and writing
float32 is 5 bytes per value, 15 kB and 0.75 MB per view, 1 µs and 50 µs at 15 GB/s of one core's memory. FLOPs:
resizing 2·2·2 (two taps, two sides), jitter 0.8·(3 brightness + 6 contrast + 6 saturation + 10 hue), grey 1, blur
0.5·2·2·taps, normalisation 2: about 35 per value at 3 taps and 50 at 10 taps (what 4σ needs on average), 0.11
and 7.5 MFLOP per view, 4 µs and 250 µs at 30 GFLOP/s, which is what elementwise float32 work in cache reaches on one
core. Decoding a 500×375 JPEG takes 0.5–1 ms per image and half of that per view, which no augmentation can
save: the ratio of whole pipelines cannot exceed (decoding + theirs) / (decoding + floor).
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from raysurl.allocator import keep_freed_memory
from raysurl.data.decode import decode
from raysurl.errors import InputError
from raysurl.views import POLICIES
from raysurl.views.augment import apply
from raysurl.views.draws import draw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICY = POLICIES["contrastive"]
VIEWS = 2  # of each image
TURN = 0.3  # seconds
Make = Callable[[], Tensor]


def photos(count: int, width: int, height: int, size: int | None = None) -> list[Image.Image]:
    """Parts of scikit-learn's two photographs, width×height, reduced to size×size if given."""
    rng, sources = np.random.default_rng(0), [Image.fromarray(x) for x in load_sample_images().images]
    parts = []
    for i in range(count):
        source = sources[i % len(sources)]
        left = int(rng.integers(0, source.width - width + 1))
        top = int(rng.integers(0, source.height - height + 1))
        part = source.crop((left, top, left + width, top + height))
        parts.append(part.resize((size, size), Image.Resampling.BICUBIC) if size else part)
    return parts


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def tensor_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_ours(data: bytes) -> Tensor:
    return torch.from_numpy(decode(data))


def read_torchvision(data: bytes) -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def read_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# ------------------------------------------------------------------ libraries


def ours(size: int) -> Callable[[Any], Tensor]:
    step = 0

    def make(images: Any) -> Tensor:
        nonlocal step
        step += 1
        draws = draw(POLICY, len(images), seed=0, step=step, view="view")
        return apply(POLICY, images, draws, size=size, mean=MEAN, std=STD)

    return make


def torchvision(size: int) -> Callable[[Any], Tensor]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(POLICY.kernel(size), (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda images: torch.stack([transform(image) for image in images])


def kornia(size: int) -> Callable[[Any], Tensor]:
    import kornia.augmentation as K

    kernel = POLICY.kernel(size)
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def make(images: Any) -> Tensor:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        return transform(batch.float().div_(255))

    return make


def lightly(size: int) -> Callable[[Any], Tensor]:
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    transform = SimCLRViewTransform(
        input_size=size, cj_prob=0.8, cj_strength=0.5, min_scale=0.2, random_gray_scale=0.2, gaussian_blur=0.5
    )  # strength 0.5 of (0.8, 0.8, 0.8, 0.2)
    return lambda images: torch.stack([transform(image) for image in images])


LIBRARIES = {"raysurl": ours, "torchvision": torchvision, "kornia": kornia, "lightly": lightly}


# ---------------------------------------------------------------- measurement


def small_cases(batch_size: int) -> dict[str, tuple[int, Make]]:
    """32 px: library -> views per call, call."""
    pictures = photos(batch_size, 200, 200, 32)
    dense = torch.stack([tensor_of(picture) for picture in pictures])
    inputs = {"raysurl": dense, "torchvision": list(dense), "kornia": dense, "lightly": pictures}
    return {name: (batch_size, partial(make(32), inputs[name])) for name, make in _installed().items()}


def large_cases(count: int) -> dict[str, tuple[int, Make]]:
    """224 px, two views from JPEG: library -> views per call, call. Decoding is part of the call."""
    data = [jpeg(photo) for photo in photos(count, 500, 375)]

    def two_views(name: str, view: Callable[[Any], Tensor]) -> Make:
        readers: dict[str, Callable[[bytes], Any]] = {"raysurl": read_ours, "lightly": read_pillow}
        read = readers.get(name, read_torchvision)

        def make() -> Tensor:
            images = [read(raw) for raw in data]
            return torch.stack([view(images) for _ in range(VIEWS)])

        return make

    cases = {name: (VIEWS * count, two_views(name, make(224))) for name, make in _installed().items()}
    for reader in (read_ours, read_torchvision):
        cases[f"only {reader.__name__}"] = (VIEWS * count, partial(_read_all, reader, data))
    return cases


def measure(cases: dict[str, tuple[int, Make]], runs: int) -> dict[str, float]:
    """Views per second, median of `runs` rounds; in each every library has a turn of at least TURN seconds.

    Memory is kept as in a run, for all of them.
    """
    keep_freed_memory()
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(runs + 1):
        for name, (views, make) in cases.items():
            start, calls = time.perf_counter(), 0
            while (seconds := time.perf_counter() - start) < TURN or not calls:
                make()
                calls += 1
            if round_:  # the first round warms up
                rates[name].append(views * calls / seconds)
    return {name: statistics.median(rate) for name, rate in rates.items()}


def main(arguments: list[str]) -> None:
    """Arguments: runs=7 batch_size=256 images=32 (JPEGs per call at 224 px)."""
    settings = {"runs": 7, "batch_size": 256, "images": 32}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in settings or not value.isdigit():
            raise InputError(f"{argument!r} is not one of {', '.join(f'{k}=<number>' for k in settings)}")
        settings[key] = int(value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tables = {
            "32 px, images in memory": measure(small_cases(settings["batch_size"]), settings["runs"]),
            "224 px, two views per 500×375 JPEG": measure(large_cases(settings["images"]), settings["runs"]),
        }
    finally:
        torch.set_num_threads(threads)
    for title, rates in tables.items():
        print(f"\n{title}: view `contrastive`, median of {settings['runs']} runs")
        print(f"{'library':<24}{'threads':>8}{'views/s':>10}{'µs/view':>10}{'raysurl is':>12}")
        for name in dict.fromkeys([*LIBRARIES, *rates]):
            if name not in rates:
                print(f"{name:<24}{'not installed':>18}")
                continue
            ratio = f"{rates['raysurl'] / rates[name]:.2f} ×" if name in LIBRARIES else ""
            print(f"{name:<24}{1:>8}{rates[name]:>10.0f}{1e6 / rates[name]:>10.1f}{ratio:>12}")


def _installed() -> dict[str, Callable[[int], Callable[[Any], Tensor]]]:
    return {
        name: make for name, make in LIBRARIES.items() if name == "raysurl" or importlib.util.find_spec(name)
    }


def _read_all(reader: Callable[[bytes], Tensor], data: list[bytes]) -> Tensor:
    return torch.stack([reader(raw)[:, 0] for raw in data])


if __name__ == "__main__":
    main(sys.argv[1:])
