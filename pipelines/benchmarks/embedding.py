"""Images per second of `raysurl embed` beside a bare loop of the encoder, and how long it waits for JPEG files.

`decoded`: images of CIFAR-10 that are in memory. What `embed` does with them (blocks of `eval.batch_size`, resized and
normalised, digests of the pixels, the table that is written) takes turns with a loop that hands the same blocks,
stacked beforehand, resized and normalised by torch, to the same encoder and keeps its output. A row is the median of
`runs` rounds; the ratio is the median of the rounds' own, with their range. Goal: at least .9.

`files`: JPEG files of 500 × 375 pixels, decoded as they are read. Waiting is the time in which the loop that embeds has
no images to embed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from raysurl.curation.embedding import embedded
from raysurl.data.dataset import Samples
from raysurl.data.names import open_samples
from raysurl.data.source import Source
from raysurl.encoder import TrainedEncoder, load_encoder
from raysurl.errors import InputError
from raysurl.sampler import Request
from raysurl.train import local
from raysurl.train.run_directory import commit, hardware, write_atomic

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "embedding.json"
WIDTH, HEIGHT = 500, 375
CPU = torch.device("cpu")


def main(arguments: list[str]) -> None:
    """`embedding run=DIR data=ROOT [images=5000] [files=1000] [runs=5] [threads=1] [out=FILE.json]`; data: a folder
    with train.parquet of CIFAR-10. Rows of other encoders stay in the file."""
    given: dict[str, Any] = {
        "run": None,
        "data": None,
        "images": 5000,
        "files": 1000,
        "runs": 5,
        "threads": 1,
        "out": FILE,
    }
    given = asked_for(arguments, given)
    if not given["run"] or not given["data"]:
        raise InputError("name run=DIR, which embeds, and data=ROOT with train.parquet")
    torch.set_num_threads(int(given["threads"]))
    said: dict[str, Any] = {"decoded": decoded(given)}
    with tempfile.TemporaryDirectory() as folder:
        said["files"] = from_files(given, Path(folder))
    said |= {"commit": commit(), "hardware": hardware(CPU), "threads": given["threads"]}
    out, name = Path(given["out"]), said["decoded"]["encoder"]
    stored = json.loads(out.read_text()) if out.is_file() else {}
    write_atomic(out, json.dumps({**stored, name: said}, indent=1, sort_keys=True) + "\n")
    print(json.dumps({name: said}, indent=1))


def opened(given: dict[str, Any], data: dict[str, Any]) -> tuple[TrainedEncoder, Samples, Source]:
    settings = {"data.eval_path": "", "data.limit": "", **data}
    found = load_encoder(given["run"], {key: str(value) for key, value in settings.items()})
    samples = open_samples(found.recipe.data, "train", seed=0, depth=found.depth)
    source, _ = local.open_sources(found.recipe, samples, None)
    found.encoder.eval()
    return found, samples, source


# -------------------------------------------------------------------- images in memory


def decoded(given: dict[str, Any]) -> dict[str, Any]:
    path = f"{given['data']}/train.parquet"
    found, samples, source = opened(
        given, {"data.name": "parquet", "data.path": path, "data.limit": given["images"]}
    )
    index, size = np.arange(len(samples)), found.recipe.eval.batch_size
    requests = [Request(0, start, index[start : start + size]) for start in range(0, len(index), size)]
    blocks = [torch.stack(list(images)) for _, images in source.images(requests)]

    def ours() -> Any:
        return embedded(found, source, samples, index, CPU)

    def bare() -> Tensor:
        return looped(found, blocks)

    close = np.abs(np.stack(ours().column("embedding").to_pylist()) - bare().numpy()).max()
    took: list[tuple[float, float]] = [(timed(ours), timed(bare)) for _ in range(given["runs"])]
    ratios = [b / a for a, b in took]
    encoder = found.recipe.encoder
    return {
        "encoder": f"{encoder.name} {looped(found, blocks[:1]).shape[1]}, {found.recipe.views.size} px",
        "images": len(index),
        "images/s": round(len(index) / statistics.median(a for a, _ in took), 1),
        "bare images/s": round(len(index) / statistics.median(b for _, b in took), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "largest difference": float(close),
    }


@torch.no_grad()
def looped(found: TrainedEncoder, blocks: list[Tensor]) -> Tensor:
    """The bare loop over uint8 blocks (b, 3, h, w) -> (n, D)."""
    v = found.recipe.views
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (v.mean, v.std))
    out = []
    for block in blocks:
        x = block.float() / 255
        if x.shape[-1] != v.size:
            x = interpolate(x, (v.size, v.size), mode="bilinear", antialias=True, align_corners=False)
        out.append(found.encoder((x - mean) / std))
    return torch.cat(out)


def timed(call: Callable[[], Any]) -> float:
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


# -------------------------------------------------------------------- JPEG files


class Watched:
    """A source that adds up how long it is waited for."""

    def __init__(self, source: Source) -> None:
        self.source, self.waited = source, 0.0

    def batches(self, requests: Iterable[Request], transform: Callable[..., Any]) -> Iterator[Any]:
        found = iter(self.source.batches(requests, transform))
        while True:
            since = time.perf_counter()
            try:
                one = next(found)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - since
            yield one


def from_files(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """JPEG files written of enlarged images of CIFAR-10, embedded while they are read."""
    _, small, images = opened(
        given,
        {"data.name": "parquet", "data.path": f"{given['data']}/train.parquet", "data.limit": given["files"]},
    )
    for request, pixels in images.images([Request(0, 0, np.arange(len(small)))]):
        for number, image in zip(request.index, pixels, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            )
            picture.save(folder / f"{number:06}.jpg", quality=90)
    found, samples, source = opened(
        given, {"data.name": "folder", "data.path": folder, "data.labels": "none", "data.mode": "streaming"}
    )
    shares, paces = [], []
    for _ in range(given["runs"]):
        watched = Watched(source)
        took = timed(lambda seen=watched: embedded(found, seen, samples, np.arange(len(samples)), CPU))  # type: ignore[misc]
        shares.append(watched.waited / took)
        paces.append(len(samples) / took)
    return {
        "files": len(samples),
        "images/s": round(statistics.median(paces), 1),
        "share of time waiting": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }
