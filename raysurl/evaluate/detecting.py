"""Training a detector on an encoder and judging it as COCO does, by all ranks together (raysurl.recipe.detections).

A step takes the same images, flips and sizes whatever the number of ranks; which boxes of an image are trained on is
drawn by each rank for its own images.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import distributed, sampler, streams
from raysurl.data import coco
from raysurl.data.dataset import Samples
from raysurl.data.gather import Images
from raysurl.data.names import open_samples
from raysurl.data.source import Source
from raysurl.embed import images_alone
from raysurl.encoder import encoder_of
from raysurl.errors import InputError, RunError
from raysurl.evaluate.coco_scores import judged
from raysurl.evaluate.unfinished import Unfinished
from raysurl.nets.drawing import drawn_from
from raysurl.nets.eager import SGD
from raysurl.recipe import Recipe
from raysurl.recipe.detections import Detection
from raysurl.runtime import Runtime
from raysurl.sampler import Request

PACKAGE = "pycocotools"
FALLS = (2 / 3, 8 / 9)  # shares of the steps after which the rate is a tenth
FIRST = 1e-3  # share of the rate with which the warm-up begins
LEAST_SIDE = 1e-3  # of a box that is trained on, in pixels
SAID = 100  # steps between two lines of the log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What the samples of a source show: `instances`, and `image` (N,), which of its images a sample is."""

    instances: coco.Instances
    image: NDArray[np.int64]

    def objects(self, sample: int) -> list[dict[str, Any]]:
        """Those of a sample that are trained on: no crowds, no empty boxes."""
        found = self.instances.objects.get(self.about(sample)["id"], [])
        return [o for o in found if not o.get("iscrowd", 0) and min(o["bbox"][2:]) > LEAST_SIDE]

    def about(self, sample: int) -> dict[str, Any]:
        return self.instances.images[self.image[sample]]


def check(recipe: Recipe, samples: Samples, eval_samples: Samples | None) -> None:
    """Raises InputError where a detector is asked for that cannot be made of the encoder, or judged on the data."""
    if "detection" not in recipe.eval.protocols:
        return
    if not recipe.data.name.startswith("coco:"):
        raise InputError(
            f"the protocol detection needs boxes and masks, as data.name=coco:2017 has; {recipe.data.name} has none"
        )
    from raysurl.evaluate import detector  # of torchvision, seconds that other protocols need not wait

    if recipe.encoder.sobel or not detector.is_resnet(encoder_of(recipe)):
        what = "a pair with Sobel edges" if recipe.encoder.sobel else f"encoder.name={recipe.encoder.name}"
        raise InputError(
            f"the protocol detection needs a ResNet, as torchvision has it, whose stages it divides, and not {what}"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"the protocol detection needs the package {PACKAGE}: pip install 'raysurl[detection]'"
        )
    if eval_samples is None:
        raise InputError(
            f"the protocol detection needs a test set, and data.path={recipe.data.path} has none"
        )
    shown = shown_of(recipe, "train", samples)
    if not any(shown.objects(sample) for sample in range(len(samples))):
        raise InputError(f"data.path={recipe.data.path} has no train image with an object in it")
    if not any(shown_of(recipe, "eval", eval_samples).objects(s) for s in range(len(eval_samples))):
        raise InputError(f"data.path={recipe.data.path} has no test image with an object in it")


def shown_of(recipe: Recipe, split: Any, samples: Samples | None = None) -> Shown:
    samples = samples or open_samples(recipe.data, split, seed=recipe.stream_seed)
    found = coco.instances(recipe.data, split)
    assert samples is not None
    assert found is not None
    at = {image["file_name"]: i for i, image in enumerate(found.images)}
    paths = samples.listing.paths.to_pylist()
    return Shown(found, np.array([at[paths[file]] for file in samples.listing.file], np.int64))


def detected(
    encoder: nn.Module,
    recipe: Recipe,
    runtime: Runtime,
    source: Source,
    test_source: Source,
    unfinished: Unfinished,
) -> dict[str, float]:
    """Average precision, in percent, of a detector that is trained on a copy of the encoder; nothing beyond rank 0.

    Every rank calls it. Raises RunError where it diverges.
    """
    model = train(encoder, recipe, runtime, source, shown_of(recipe, "train"), unfinished)
    return tested(model, recipe, runtime, test_source)


def tested(model: Any, recipe: Recipe, runtime: Runtime, test_source: Source) -> dict[str, float]:
    """The same of a detector that is trained."""
    of_test = shown_of(recipe, "eval")
    index = np.flatnonzero(test_source.readable)
    world, rank = distributed.world_size(), distributed.rank()
    own = np.array_split(index, world)[rank]
    results = list(detections(model, test_source, of_test, own, runtime.device))
    parts = distributed.gather_objects(results)
    if rank:
        return {}
    ids = [of_test.about(int(sample))["id"] for sample in index]
    found = [one for part in parts for one in part]
    return judged(of_test.instances, ids, found, seed=recipe.stream_seed)


# -------------------------------------------------------------------- training


def train(
    encoder: nn.Module,
    recipe: Recipe,
    runtime: Runtime,
    source: Source,
    shown: Shown,
    unfinished: Unfinished | None = None,
) -> Any:
    from raysurl.evaluate import detector

    settings, device, world = recipe.eval.detection, runtime.device, distributed.world_size()
    seed = streams.integer(recipe.stream_seed, "detection")
    with drawn_from(streams.torch_stream(seed, "weights")):
        model = detector.detector_of(encoder, len(shown.instances.categories), recipe).to(device)
    index = np.array([i for i in np.flatnonzero(source.readable) if shown.objects(int(i))], np.int64)
    size = max(world, settings.batch_size // world * world)
    plan = sampler.plan(np.resize(index, max(len(index), size)), batch_size=size, seed=seed)
    optimizer = optimizer_of(model, settings)
    said = {"data": recipe.data, "views": recipe.views, "detection": settings, "size": size, "seed": seed}
    training = (unfinished or Unfinished()).training("detector", {**said, "samples": index}, model, optimizer)
    wrapped = distributed.wrap(model, device, world)
    wrapped.train()
    requests = plan.requests(training.done, settings.steps, rank=distributed.rank(), world_size=world)
    with training.kept():
        for request, images in source.batches(requests, _with_request):
            batch, targets = _prepared(request, images, shown, model, settings, seed, device)
            with training.step():
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor_of(settings, request.step)
                draws = streams.torch_stream(seed, "boxes", request.step, distributed.rank(), device=device)
                with drawn_from(draws):
                    loss = sum(wrapped(batch, targets).values(), torch.zeros((), device=device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                _look(float(distributed.mean(loss.detach())), request.step + 1, settings)
    return model.eval()


def _prepared(
    request: Request,
    images: Images,
    shown: Shown,
    model: Any,
    settings: Detection,
    seed: int,
    device: torch.device,
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets of this rank's part of a batch, half of them flipped; the size is told to the model."""
    chance = streams.numpy_stream(seed, "views", request.step)
    model.transform.side = int(chance.choice(settings.sizes))
    flips = (chance.random(request.rows.stop) < 0.5)[request.rows]
    batch = [image.to(device).float() / 255 for image in images]
    targets = [target_of(shown, int(s), image) for s, image in zip(request.index, batch, strict=True)]
    for i in np.flatnonzero(flips):
        batch[i], targets[i] = flipped(batch[i], targets[i])
    return batch, targets


def _look(loss: float, done: int, settings: Detection) -> None:
    """At the mean loss of a step, which is alike on all ranks, so that all stop. Raises RunError."""
    if not np.isfinite(loss):
        raise RunError(
            f"the detector diverged at step {done}; use a smaller eval.detection.lr than {settings.lr:g}"
        )
    if not done % SAID or done == settings.steps:
        log.info("detection, step %d of %d: loss %.4f", done, settings.steps, loss)


def _with_request(request: Request, images: Images) -> tuple[Request, Images]:
    return request, images


def optimizer_of(model: nn.Module, settings: Detection) -> torch.optim.Optimizer:
    """SGD; norms and biases, which have one dimension, are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD(groups, lr=settings.lr, momentum=settings.momentum)


def factor_of(settings: Detection, step: int) -> float:
    """Of the rate at a step, counted from 0."""
    factor = 0.1 ** sum(step >= round(share * settings.steps) for share in FALLS)
    if step < settings.warmup_steps:
        factor *= FIRST + (1 - FIRST) * step / settings.warmup_steps
    return float(factor)


def target_of(shown: Shown, sample: int, image: Tensor) -> dict[str, Tensor]:
    """`boxes` (n, 4) as corners in pixels, `labels` (n,) from 1, `masks` (n, H, W) uint8, of the objects of a sample.

    On the device of its image (3, H, W). Raises RunError where that has another size than its annotations say.
    """
    from pycocotools import mask

    about, objects = shown.about(sample), shown.objects(sample)
    height, width = about["height"], about["width"]
    if image.shape[1:] != (height, width):
        raise RunError(
            f"{about['file_name']} has {image.shape[2]} × {image.shape[1]} pixels, and its annotations are for"
            f" {width} × {height}"
        )
    boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    numbers = {category: i + 1 for i, category in enumerate(shown.instances.categories)}
    masks = np.zeros((len(objects), height, width), np.uint8)
    for row, thing in enumerate(objects):
        form = thing["segmentation"]
        if isinstance(form, list):
            form = mask.merge(mask.frPyObjects(form, height, width))
        elif isinstance(form["counts"], list):
            form = mask.frPyObjects(form, height, width)
        masks[row] = mask.decode(form)
    labels = torch.tensor([numbers[o["category_id"]] for o in objects])
    found = {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)}
    return {name: value.to(image.device) for name, value in found.items()}


def flipped(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Left and right exchanged."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = image.shape[-1]
    boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
    return image.flip(-1), {**target, "boxes": boxes, "masks": target["masks"].flip(-1)}


# -------------------------------------------------------------------- the test


@torch.no_grad()
def detections(
    model: Any, source: Source, shown: Shown, index: NDArray[np.int64], device: torch.device
) -> Iterator[dict[str, Any]]:
    """What COCO's own evaluation reads, of the samples `index` (n,), one by one."""
    from pycocotools import mask

    requests = [Request(0, i, index[i : i + 1]) for i in range(len(index))]
    for request, images in zip(requests, source.batches(requests, images_alone), strict=True):
        (found,) = model([images[0].to(device).float() / 255])
        image = shown.about(int(request.index[0]))["id"]
        corners = found["boxes"].cpu().numpy().astype(float)
        for box, score, label, shape in zip(
            corners, found["scores"].tolist(), found["labels"].tolist(), found["masks"], strict=True
        ):
            drawn = (shape[0] > 0.5).cpu().numpy().astype(np.uint8)
            yield {
                "image_id": image,
                "category_id": shown.instances.categories[label - 1],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
                "segmentation": mask.encode(np.asfortranarray(drawn)),
            }
