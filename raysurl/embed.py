"""Embeddings of a whole data set, computed by the training workers on their own parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raysurl import distributed
from raysurl.data.source import Images, Source
from raysurl.recipe import Recipe
from raysurl.sampler import Request
from raysurl.views import POLICIES
from raysurl.views.augment import apply
from raysurl.views.draws import draw


def plain_images(recipe: Recipe, images: Images, device: torch.device) -> Tensor:
    """Normalised images (b, 3, S, S) at views.size, resized and centre-cropped, without augmentation."""
    v, policy = recipe.views, POLICIES["plain"]
    draws = draw(policy, len(images), seed=0, step=0, view="plain")
    return apply(policy, images, draws, size=v.size, mean=v.mean, std=v.std, device=device)


@torch.inference_mode()
def embed(
    encoder: nn.Module, source: Source, recipe: Recipe, device: torch.device, index: np.ndarray
) -> Tensor:
    """Encoder output (n, D) fp32 on CPU for the samples `index` (n,), in that order, on rank 0 (empty elsewhere).

    Every rank calls it; rank r embeds its contiguous share, block by block, so that no collective waits long.
    """
    training = encoder.training
    encoder.eval()
    rank, world = distributed.rank(), distributed.world_size()
    block = recipe.eval.batch_size
    in_bf16 = device.type == "cuda" and recipe.precision(device) == "bf16"  # on a CPU it would save nothing
    share = -(-len(index) // world)
    padded = np.resize(index, share * world)[rank * share : (rank + 1) * share]
    requests = [Request(0, i, padded[i : i + block]) for i in range(0, share, block)]
    kept: list[Tensor] = []
    for images in source.batches(requests, images_alone):
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            out = encoder(plain_images(recipe, images, device))
        out = distributed.gather(out.float())
        if rank == 0:
            kept.append(out.view(world, -1, out.shape[1]).cpu())
    encoder.train(training)
    if rank:
        return torch.empty(0)
    return torch.cat(kept, dim=1).flatten(0, 1)[: len(index)]


def pixels(source: Source, recipe: Recipe, index: np.ndarray) -> Tensor:
    """Raw pixels (n, 3·S·S) of the plain view, on this process alone."""
    block = recipe.eval.batch_size
    requests = [Request(0, i, index[i : i + block]) for i in range(0, len(index), block)]
    cpu = torch.device("cpu")
    return torch.cat(
        [plain_images(recipe, images, cpu).flatten(1) for images in source.batches(requests, images_alone)]
    )


def images_alone(request: Request, images: Images) -> Images:
    return images
