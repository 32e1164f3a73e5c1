"""What labels reach on a data set, by training that has no part of this package: the ceiling beside which a number
without labels, on the same copies of the images, is to be read.

A ResNet-18 with a stem of 3×3 in plain torch, cross-entropy, SGD of .1 with momentum .9 and decay 5e-4 of the weights,
cosine, batch 256; views by padding and cropping (`pad`, the usual ones for such images) or by random resized crops of a
share of .2 to 1 (`resized`, the weak views of ReSSL), flipped half of the time. Judged on the whole test images.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import torchvision
from benchmarks._asked import asked_for
from PIL import Image
from torch import Tensor, nn

BATCH, RATE, DECAY = 256, 0.1, 5e-4
DEFAULTS = {"data": "cifar10", "views": "pad", "epochs": 10, "limit": None, "out": "control.json"}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def main(arguments: list[str]) -> None:
    """`control data=FOLDER [views=pad] [epochs=10] [limit=N] [out=control.json]`, with train and test.parquet there."""
    asked = asked_for(arguments, DEFAULTS)
    folder, epochs, limit = Path(str(asked["data"])), int(asked["epochs"]), asked["limit"]
    views = VIEWS[asked["views"]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    train, test = (_images(folder / f"{part}.parquet", limit, device) for part in ("train", "test"))
    began = time.perf_counter()
    network = _trained(*train, views, epochs)
    top1 = _accuracy(network, *test)
    found = {"views": asked["views"], "epochs": epochs, "images": len(train[0]), "top1": top1}
    found |= {"seconds": time.perf_counter() - began, "device": str(device), "torch": torch.__version__}
    print(found)
    Path(str(asked["out"])).write_text(json.dumps(found, indent=1))


def _images(path: Path, limit: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,)."""
    table = pq.read_table(path).slice(0, limit)
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(_decoded, table["image"].to_pylist())))
    labels = torch.tensor(table["label"].to_pylist())
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device), labels.to(device)


def _decoded(image: dict[str, bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))


def _pad(x: Tensor) -> Tensor:
    """Crops of the images with a border of 4 reflected pixels."""
    count, size = len(x), x.shape[-1]
    padded = F.pad(x, (4,) * 4, mode="reflect")
    top, left = torch.randint(0, 9, (2, count, 1), device=x.device)
    rows = top + torch.arange(size, device=x.device)
    columns = left + torch.arange(size, device=x.device)
    columns = torch.where(torch.rand(count, 1, device=x.device) < 0.5, columns, columns.flip(1))
    sample = torch.arange(count, device=x.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized(x: Tensor) -> Tensor:
    """Random resized crops, bilinear without antialiasing."""
    count = len(x)
    area, ratio = (torch.empty(count, device=x.device) for _ in range(2))
    area.uniform_(0.2, 1)
    ratio.uniform_(math.log(3 / 4), math.log(4 / 3)).exp_()
    scale = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1)
    centre = (2 * torch.rand_like(scale) - 1) * (1 - scale)
    flip = torch.where(torch.rand(count, device=x.device) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[0] * flip, scale[1], centre.T
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"pad": _pad, "resized": _resized}


def _normal(x: Tensor) -> Tensor:
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def _trained(images: Tensor, labels: Tensor, views: Callable[[Tensor], Tensor], epochs: int) -> nn.Module:
    network = torchvision.models.resnet18(num_classes=int(labels.max()) + 1)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network = network.to(images.device, memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": DECAY}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        for index in torch.randperm(len(images), device=images.device)[: steps * BATCH].split(BATCH):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
                scores = network(_normal(views(images[index].float() / 255)))
            loss = F.cross_entropy(scores.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", flush=True)
    return network


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in per cent."""
    network.eval()
    right = [
        (network(_normal(x.float() / 255)).argmax(1) == y).sum()
        for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    ]
    return 100 * float(torch.stack(right).sum()) / len(labels)
