"""Baselines beside lightly's own modules with torch's DataLoader: kNN within the seeds' noise, and images/s.

Both train the same encoder on the same images, in a process of its own each, one after the other, with the same
batch, epochs, threads, rates, decays and view settings (crops of Pillow there, of tensors here). lightly's side has its
heads, losses, averages and view operations (benchmarks/_peer_models.py), decoded images in memory, and a DataLoader
with as many workers as there are threads. Ours is `pretrain` as it is, runtime=local. Time is that of the steps, the
first epoch's left out where there are more; kNN (k = 200) is of our own evaluation on both sides.
JSON is written after each run, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for
from torch import Tensor, nn

from raysurl import metrics
from raysurl.data.dataset import all_readable
from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.evaluate import knn_classify
from raysurl.method import Progress
from raysurl.recipe import Recipe, load_recipe
from raysurl.run import pretrain
from raysurl.train.optim import base_lr, build_optimizer, learning_rate, set_lr
from raysurl.train.run_directory import commit, hardware, write_atomic
from raysurl.views import Policy

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "peers.json"
METHODS = {
    "simclr": ("method.hidden=512",),
    "mocov2": ("method.hidden=512", "norm=local"),
    "byol": ("method.hidden=512", "method.predictor_hidden=512", "method.dim=128"),
    "vicreg": ("method.hidden=512", "method.dim=512"),
    # lightly's projector always has three layers
    "barlow": ("method.hidden=512", "method.dim=512", "method.projector_layers=3"),
    "nnclr": ("method.hidden=512", "method.predictor_hidden=512", "method.dim=128", "method.queue_size=4096"),
}
SMALLER_LOSS = {"byol": 4}  # lightly's is a quarter of the paper's, and ours is the paper's
SETTINGS = (
    "data.name=parquet", "views.size=24", "encoder.name=convnet", "encoder.small_stem=false", "train.batch_size=128",
    "train.schedule.warmup_epochs=1", "eval.every_epochs=0", "eval.protocols=[knn]", "eval.baselines=false",
    "encoder.zero_init_residual=false", "runtime=local", "log.tensorboard=false",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    """`peers data=FOLDER [methods=[…]] [epochs=8] [samples=10000] [seeds=[0, 1]] [threads=2] [out=FILE.json]`."""
    given = asked_for(
        arguments,
        {
            "data": None,
            "methods": list(METHODS),
            "epochs": 8,
            "samples": 10_000,
            "seeds": [0, 1],
            "threads": 2,
            "out": FILE,
        },
    )
    if not given["data"]:
        raise InputError("name the folder that holds train.parquet and test.parquet: data=FOLDER")
    out, threads = Path(given["out"]), int(given["threads"])
    rows = json.loads(out.read_text())["runs"] if out.exists() else []
    context = multiprocessing.get_context("spawn")
    for method in given["methods"]:
        for seed in given["seeds"]:
            settings = [
                f"recipe={method}/cifar10", *SETTINGS, *METHODS[method], f"data.path={given['data']}/train.parquet",
                f"data.eval_path={given['data']}/test.parquet", f"data.limit={given['samples']}", f"seed={seed}",
                f"train.epochs={given['epochs']}", f"scale.threads={threads}",
            ]  # fmt: skip
            for side, measure in (("raysurl", ours), ("lightly", theirs)):
                key = {"method": method, "seed": seed, "side": side, "epochs": given["epochs"],
                       "samples": given["samples"], "threads": threads}  # fmt: skip
                if any(key.items() <= row.items() for row in rows):
                    continue
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    rows.append(
                        {**key, **pool.submit(measure, settings, threads).result(), "commit": commit()}
                    )
                write_atomic(
                    out,
                    json.dumps({"hardware": hardware(torch.device("cpu")), "runs": rows}, indent=1),
                )
                print(rows[-1], flush=True)
    print(table(rows))


def ours(settings: list[str], threads: int) -> dict[str, float]:
    """kNN and images/s of `pretrain`."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = pretrain(load_recipe([*settings, f"output={folder}/run"]))
        values = json.loads((run_dir / "results.json").read_text())["metrics"]
        lines = metrics.read(run_dir / "metrics.jsonl")
        speed = [line["speed/images_per_s"] for line in lines if "speed/images_per_s" in line]
        return {"knn": values["eval/knn_top1"], "images_per_s": 1 / float(np.mean(1 / np.array(speed)))}


def theirs(settings: list[str], threads: int) -> dict[str, float]:
    """The same of lightly's modules, fed by a DataLoader."""
    from benchmarks._peer_models import MODELS

    torch.set_num_threads(threads)
    recipe = load_recipe(settings)
    torch.manual_seed(recipe.seed)
    pictures, labels = _decoded(recipe, "train")
    first, second = (transform_of(policy, recipe) for policy in recipe.view_policies().values())
    loader = torch.utils.data.DataLoader(
        _Pairs(pictures, first, second), recipe.train.batch_size, shuffle=True, drop_last=True, num_workers=threads,
        persistent_workers=True,
    )  # fmt: skip
    model: Any = MODELS[recipe.method.name](encoder_of(recipe), recipe.method)
    optimizer = build_optimizer(model, _their_optimizer(recipe))
    took = []
    for epoch in range(recipe.train.epochs):
        began = time.perf_counter()
        _epoch(model, optimizer, loader, recipe, epoch)
        took.append(time.perf_counter() - began)
    tests, test_labels = _decoded(recipe, "eval")
    bank, queries = (_features(model.encoder, images, recipe) for images in (pictures, tests))
    found = knn_classify(bank, labels, queries, num_classes=int(labels.max()) + 1)
    return {
        "knn": 100 * float((found == test_labels).float().mean()),
        # the first epoch starts the workers
        "images_per_s": len(loader) * recipe.train.batch_size / float(np.mean(took[1:] or took)),
    }


def _epoch(model: Any, optimizer: torch.optim.Optimizer, loader: Any, recipe: Recipe, epoch: int) -> None:
    base, steps = base_lr(_their_optimizer(recipe), recipe.train.batch_size), len(loader)
    model.train()
    for i, views in enumerate(loader):
        at = Progress(epoch * steps + i, recipe.train.epochs * steps, steps, recipe.seed)
        set_lr(optimizer, learning_rate(base, recipe.train.schedule, at))
        optimizer.zero_grad()
        model(*views).backward()
        optimizer.step()
        model.after_step()


def _their_optimizer(recipe: Recipe) -> Any:
    """Our rates and decays, made up for a loss that is a fraction of the paper's."""
    settings, smaller = recipe.train.optimizer, SMALLER_LOSS.get(recipe.method.name, 1)
    changed = {"lr": smaller * settings.lr, "weight_decay": settings.weight_decay / smaller}
    return settings.model_copy(update=changed)


def transform_of(policy: Policy, recipe: Recipe) -> Any:
    """A policy of ours as lightly builds its views: torchvision's operations on one picture, its own solarization.

    Its blur is Pillow's, which is wider on small views than the recipes' three pixels: torchvision's here.
    """
    from lightly.transforms import RandomSolarization
    from torchvision import transforms as T

    size = policy.size or recipe.views.size
    assert policy.crop
    modes = {"bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}
    blur = T.GaussianBlur(policy.kernel(size), policy.blur_sigma)
    return T.Compose(
        [
            T.RandomResizedCrop(size, policy.crop, policy.ratio, modes[policy.interpolation]),
            T.RandomHorizontalFlip(policy.flip),
            T.RandomApply([T.ColorJitter(*policy.jitter)], policy.jitter_p),
            T.RandomGrayscale(policy.gray_p),
            T.RandomApply([blur], policy.blur_p),
            RandomSolarization(prob=policy.solarize_p),
            T.ToTensor(),
            T.Normalize(recipe.views.mean, recipe.views.std),
        ]
    )


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of each picture."""

    def __init__(self, pictures: np.ndarray, first: Any, second: Any) -> None:
        self.pictures, self.first, self.second = pictures, first, second

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        picture = Image.fromarray(self.pictures[index])
        return self.first(picture), self.second(picture)


def _decoded(recipe: Recipe, split: Any) -> tuple[np.ndarray, Tensor]:
    """Images (n, h, w, 3) uint8 and labels (n,) of a split."""
    samples = open_samples(recipe.data, split, seed=recipe.stream_seed)
    assert samples is not None
    assert samples.labels is not None
    images = np.stack(all_readable(samples.load(range(len(samples)))))
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), torch.from_numpy(samples.labels)


def _features(encoder: nn.Module, pictures: np.ndarray, recipe: Recipe) -> Tensor:
    """Of plain images at the size of the views, as our evaluation sees them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.views.mean, recipe.views.std))
    encoder.eval()
    rows = []
    with torch.no_grad():
        for at in range(0, len(pictures), 256):
            x = torch.from_numpy(pictures[at : at + 256]).permute(0, 3, 1, 2).float() / 255
            x = nn.functional.interpolate(x, recipe.views.size, mode="bilinear", antialias=True)
            rows.append(encoder((x - mean) / std))
    return torch.cat(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per method kNN of both over seeds, and images/s as a ratio."""
    lines = [
        "| method | kNN ours | kNN lightly | images/s ours | lightly | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        sides = [
            [r for r in rows if r["method"] == method and r["side"] == s] for s in ("raysurl", "lightly")
        ]
        if not all(sides):
            continue
        knn = [_mean([row["knn"] for row in side]) for side in sides]
        speed = [float(np.median([row["images_per_s"] for row in side])) for side in sides]
        ratio = speed[0] / speed[1]
        lines.append(f"| {method} | {knn[0]} | {knn[1]} | {speed[0]:.0f} | {speed[1]:.0f} | {ratio:.2f}× |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{mean:.1f} ± {deviation:.1f}" if len(values) > 1 else f"{mean:.1f}"
