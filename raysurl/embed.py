"""Embeddings of a whole data set, computed by the training workers on their own parts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raysurl import distributed
from raysurl.allocator import keep_freed_memory
from raysurl.data.source import Images, Source
from raysurl.recipe import Recipe
from raysurl.sampler import Request
from raysurl.views import POLICIES
from raysurl.views.augment import apply
from raysurl.views.draws import Draws, draw
from raysurl.views.policies import Policy

MAPPED = 2**31  # bytes of features up to which they are held in memory
WIDE = 160  # pixels from which on test images are taken as ImageNet's are, Resize(256) and CenterCrop(224)


@dataclass(frozen=True)
class Augmented:
    """Random views for features: policy, and which ones. Those of a sample depend on its place in the index alone."""

    policy: Policy
    epoch: int


def plain_policy(recipe: Recipe) -> Policy:
    """Without augmentation: resized, by `eval.margin` more than the view, and centre-cropped."""
    margin = recipe.eval.margin
    if margin is None:
        margin = 256 / 224 if recipe.views.size >= WIDE else 1.0
    return POLICIES["plain"].model_copy(update={"margin": margin})


def plain_images(recipe: Recipe, images: Images, device: torch.device) -> Tensor:
    """Normalised images (b, 3, S, S) at views.size, resized and centre-cropped, without augmentation."""
    v, policy = recipe.views, plain_policy(recipe)
    draws = draw(policy, len(images), seed=0, step=0, view="plain")
    return apply(policy, images, draws, size=v.size, mean=v.mean, std=v.std, device=device)


def augmented_images(
    recipe: Recipe, images: Images, device: torch.device, augmented: Augmented, places: Tensor
) -> Tensor:
    """The views of `embed` of the images that stand at `places` (b,) of its index."""
    draws = _draws(recipe, augmented, int(places.max()) + 1)
    return _images(recipe, images, device, augmented, draws[places])


def _draws(recipe: Recipe, augmented: Augmented, count: int) -> Draws:
    return draw(augmented.policy, count, seed=recipe.stream_seed, step=augmented.epoch, view="linear")


def _images(
    recipe: Recipe, images: Images, device: torch.device, augmented: Augmented | None, draws: Draws | None
) -> Tensor:
    if augmented is None or draws is None:
        return plain_images(recipe, images, device)
    v = recipe.views
    return apply(augmented.policy, images, draws, size=v.size, mean=v.mean, std=v.std, device=device)


@torch.no_grad()
def embed(
    encoder: nn.Module,
    source: Source,
    recipe: Recipe,
    device: torch.device,
    index: np.ndarray,
    augmented: Augmented | None = None,
    look: Callable[[np.ndarray, Images], None] | None = None,
) -> Tensor:
    """Encoder output (n, D) fp32 on CPU for the samples `index` (n,), in that order, on rank 0 (empty elsewhere).

    Every rank calls it; rank r embeds its contiguous share, block by block, so that no collective waits long. More
    than MAPPED bytes of features are in a file of their own that is gone with them, and in memory only as far as there
    is room. `look` is given each block's sample indices and its images as they were decoded, in the thread that reads.
    """
    training = encoder.training
    encoder.eval()
    rank, world = distributed.rank(), distributed.world_size()
    block = recipe.eval.batch_size
    share = -(-len(index) // world)
    padded = np.resize(index, share * world)[rank * share : (rank + 1) * share]
    requests = [Request(0, i, padded[i : i + block]) for i in range(0, share, block)]
    draws = None
    if augmented:
        draws = _draws(recipe, augmented, share * world)[rank * share : (rank + 1) * share]
    rows = torch.empty(0)

    def looked(request: Request, images: Images) -> Images:
        if look is not None:
            look(request.index, images)
        return images

    for request, images in zip(requests, source.batches(requests, looked), strict=True):
        place = slice(request.start, request.start + len(request.index))
        view = _images(recipe, images, device, augmented, draws[place] if draws else None)
        out = distributed.gather(_through(encoder, recipe, view))
        if rank == 0:
            if not len(rows):
                rows = room(share * world, out.shape[1])
            rows.view(world, share, -1)[:, place] = out.view(world, -1, out.shape[1]).cpu()
    encoder.train(training)
    return rows[: len(index)]


@torch.no_grad()
def embed_images(encoder: nn.Module, recipe: Recipe, images: Images, device: torch.device) -> Tensor:
    """Encoder output (b, D) fp32 of decoded images, prepared as `embed` does; the encoder is in `eval()` already."""
    return _through(encoder, recipe, plain_images(recipe, images, device))


def _through(encoder: nn.Module, recipe: Recipe, view: Tensor) -> Tensor:
    device = view.device
    if device.type == "cpu":
        keep_freed_memory()
    # a CPU's embeddings do not depend on whether it has AMX, without which bf16 is slower than fp32
    in_bf16 = device.type == "cuda" and recipe.precision(device) == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
        out: Tensor = encoder(view)
    return out.float()


def room(count: int, dim: int) -> Tensor:
    """For (count, dim) fp32: in memory, or in a file that no folder names."""
    if 4 * count * dim <= MAPPED:
        return torch.empty(count, dim)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(count, dim)))


def pixels(source: Source, recipe: Recipe, index: np.ndarray) -> Tensor:
    """Raw pixels (n, 3·S·S) of the plain view, on this process alone."""
    block = recipe.eval.batch_size
    requests = [Request(0, i, index[i : i + block]) for i in range(0, len(index), block)]
    rows, cpu = torch.empty(0), torch.device("cpu")
    for request, images in zip(requests, source.batches(requests, images_alone), strict=True):
        part = plain_images(recipe, images, cpu).flatten(1)
        if not len(rows):
            rows = room(len(index), part.shape[1])
        rows[request.rows] = part
    return rows


def images_alone(request: Request, images: Images) -> Images:
    return images
