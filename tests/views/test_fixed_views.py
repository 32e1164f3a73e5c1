"""Views in operations of fixed shapes are the views of `apply`, for every policy and kind of image."""

import contract
import numpy as np
import pytest
import torch
from replaying import ReplayedGraph

from raysurl.train.device_views import DeviceViews
from raysurl.views import POLICIES, augment
from raysurl.views.augment import apply
from raysurl.views.draws import draw
from raysurl.views.fixed import FixedView
from raysurl.views.geometry import crop_boxes, resize_each
from raysurl.views.randaugment import POOL

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NAMES = [name for name, policy in POLICIES.items() if not policy.randaugment]


def images_of(count, *shape):
    return torch.randint(
        0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def both(policy, images, size):
    draws = draw(policy, len(images), seed=3, step=7, view="view")
    expected = apply(policy, images, draws, size=size, mean=MEAN, std=STD)
    view = FixedView(policy, size=size, mean=MEAN, std=STD, source=tuple(images.shape[2:]))
    out = torch.empty(len(images), 3, view.size, view.size)
    return expected, view(images, torch.from_numpy(view.rows(draws)), out)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 40), (1, 32, 32)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_policy(name, shape):
    policy = POLICIES[name]
    policy = policy.model_copy(update={"size": 40 if policy.size else None})
    expected, found = both(policy, images_of(24, *shape), 32)
    torch.testing.assert_close(
        found, expected, rtol=0, atol=5e-5
    )  # of values divided by a deviation of a quarter


@pytest.mark.parametrize("strength", [(0.4, 0, 0, 0), (0, 0.8, 0.8, 0), (0, 0, 0, 0.5), (0.8, 0.8, 0.8, 0.2)])
def test_jitter_of_any_strength_in_any_order(strength):
    policy = POLICIES["plain"].model_copy(update={"jitter": strength, "jitter_p": 0.7, "flip": 0.5})
    expected, found = both(policy, images_of(64, 3, 16, 16), 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kernel", [3, 9, 23, "whole"])
def test_blur_of_any_width(kernel):
    policy = POLICIES["plain"].model_copy(
        update={"blur_p": 0.6, "blur_kernel": kernel, "solarize_p": 0.3, "gray_p": 0.3}
    )
    expected, found = both(policy, images_of(40, 3, 28, 28), 28)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_images_that_were_cropped_on_the_host():
    policy = POLICIES["contrastive"]
    images = [image[:, : 20 + i, : 30 - i] for i, image in enumerate(images_of(6, 3, 32, 32))]
    draws = draw(policy, 6, seed=3, step=7, view="view")
    expected = apply(policy, images, draws, size=24, mean=MEAN, std=STD)
    view = FixedView(policy, size=24, mean=MEAN, std=STD, source=None)
    heights, widths = (np.array([image.shape[d] for image in images]) for d in (1, 2))
    cropped = resize_each(images, view.boxes(draws, heights, widths), view.size, policy.interpolation)
    found = view(cropped, torch.from_numpy(view.rows(draws)), torch.empty(6, 3, 24, 24))
    # cropped pixels travel as bytes: half a level each, divided by a deviation of a quarter
    assert (found - expected).abs().mean() < 0.6 / 255 / min(STD)


@pytest.mark.parametrize("name", ["contrastive", "strong", "plain"])
@pytest.mark.parametrize("ragged", [False, True])
def test_apply_makes_on_a_device_what_it_makes_on_a_cpu(name, ragged):
    """The way of a device, taken here on the CPU: every operation for all images at once, RandAugment among them."""
    policy, images = POLICIES[name], images_of(8, 3, 32, 32)
    if ragged:
        images = [image[:, : 20 + i, : 30 - i] for i, image in enumerate(images)]
        images[0] = images[0][:1]
    draws = draw(policy, 8, seed=3, step=7, view="view")
    expected = apply(policy, images, draws, size=24, mean=MEAN, std=STD)
    boxes = crop_boxes(policy, draws, *augment._sides(images), 24)
    found = augment._on_device(policy, images, draws, boxes, 24, MEAN, STD, torch.device("cpu"))
    rounded = 0.6 / 255 / min(STD) if ragged else 5e-5
    # equalize and posterize turn a rounding into a step of a level or more
    steps = torch.tensor([POOL.index("equalize"), POOL.index("posterize")])
    smooth = ~torch.isin(draws.operation, steps).any(1)
    assert (found - expected)[smooth].abs().mean() < (3 * rounded if policy.randaugment else rounded)


@pytest.mark.parametrize("free", [2**30, 0], ids=["resident", "copied"])
def test_batches_of_a_run_are_those_of_the_loader(free, tmp_path):
    run, said = contract.start(contract.recipe_for("ressl"), tmp_path / "run"), []
    device = torch.device("cpu")
    views = DeviceViews(
        run.loader.augment, run.loader.source, device, channels_last=True, say=said.append,
        new_graph=ReplayedGraph, free=free,
    )  # fmt: skip
    fixed = list(views.batches(run.plan.requests(0, 6, rank=0, world_size=1, accumulate=1)))
    for step, (_, prepared) in enumerate(fixed):
        (((loaded,), _),) = run.loader.steps(step, step + 1)
        expected, found = run.loader.to_batch(loaded), views.batch(prepared)
        assert torch.equal(found.index, expected.index)
        for name, view in expected.views.items():
            torch.testing.assert_close(found.views[name], view, rtol=0, atol=5e-5)
            assert found.views[name].is_contiguous(memory_format=torch.channels_last)
    assert any("recorded" in sentence for sentence in said)
    assert any("kept on the device" in sentence for sentence in said) == bool(free)
