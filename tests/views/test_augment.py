"""Every operation against torchvision's functional with the same parameters, then whole policies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from raysurl.errors import InputError
from raysurl.views import POLICIES, Policy, colour, geometry
from raysurl.views.augment import apply
from raysurl.views.draws import Draws, draw
from raysurl.views.randaugment import POOL, operate

TOLERANCE = 2 / 255
PLAIN_NORM = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A (3, h, w) uint8 image with smooth shapes, sharp edges, noise, saturated and grey parts."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 1.6 - 0.3
    image += 0.05 * torch.randn(3, height, width, generator=generator)
    image[:, : height // 4, : width // 4] = image[0, : height // 4, : width // 4]
    image[:, -height // 3 :, -width // 3 :] = torch.rand(3, 1, 1, generator=generator).round()
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.stack([picture(height, width, seed) for seed in range(count)])


def planes_of(images: Tensor) -> Tensor:
    return images.float().div(255).transpose(0, 1).contiguous()


def difference(ours: Tensor, theirs: Tensor) -> float:
    theirs = theirs.float().div(255) if theirs.dtype == torch.uint8 else theirs
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().mean())


# ------------------------------------------------------------------ operations


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 28, 16), (12, 9, 24), (90, 64, 31)])
def test_crop_and_resize(mode: str, height: int, width: int, size: int) -> None:
    images = pictures(12, height, width)
    policy = Policy(crop=(0.01, 1.0), ratio=(0.2, 5.0), interpolation=mode, flip=0.5)  # type: ignore[arg-type]
    draws = draw(policy, 12, seed=0, step=0, view="a")
    sides = np.full(12, height), np.full(12, width)
    boxes = geometry.crop_boxes(policy, draws, *sides, size)
    ours = apply(policy, images, draws, size=size, **PLAIN_NORM)
    each = geometry.resize_each(list(images), boxes, size, mode)
    for i in range(12):
        box = [int(values[i]) for values in (boxes.top, boxes.left, boxes.height, boxes.width)]
        image = images[i].double().div(255)
        theirs = TF.resized_crop(image, *box, [size, size], MODES[mode], antialias=True).clamp(0, 1).float()
        expected = theirs.flip(2) if draws.flip[i] else theirs
        torch.testing.assert_close(ours[i], expected, atol=2e-6, rtol=0)
        assert difference(each[i].float().div(255), theirs) < 0.6 / 255


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(4, 40), grey=st.booleans(),
    last=st.booleans(), mode=st.sampled_from(["bilinear", "bicubic"]), margin=st.sampled_from([None, 1.0, 8 / 7, 4.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_crop_and_resize_of_images_of_any_size_and_layout(
    height: int, width: int, size: int, grey: bool, last: bool, mode: str, margin: float | None, seed: int
) -> None:
    """What is compiled does not look whether a pixel is there: it has to know."""
    region = {"crop": (0.01, 1.0)} if margin is None else {"margin": margin}
    policy = Policy(**region, interpolation=mode, flip=0.5)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (3, 1 if grey else 3, height, width), dtype=torch.uint8, generator=generator)
    draws = draw(policy, 3, seed=seed, step=0, view="a")
    laid = images.contiguous(memory_format=torch.channels_last) if last else images
    ours = apply(policy, laid, draws, size=size, **PLAIN_NORM)
    for i in range(3):
        expected = reference_view(policy, images[i].double().div(255), draws, i, size)
        torch.testing.assert_close(ours[i], expected.float().expand(3, -1, -1), atol=3e-6, rtol=0)


def with_one(images: Tensor, jitter: int, values: Tensor, size: int) -> Tensor:
    """The images after one jitter operation, whose parameters are given."""
    policy = Policy(jitter=tuple(0.5 * (k == jitter) for k in range(4)), jitter_p=1)  # type: ignore[arg-type]
    draws = draw(policy, len(images), seed=0, step=0, view="a")
    draws.factors[:, jitter] = values
    return apply(policy, images, draws, size=size, **PLAIN_NORM)


@pytest.mark.parametrize("factor", [0.0, 0.35, 1.0, 1.7])
@pytest.mark.parametrize("size", [24, 61])  # a block of pixels, and several with a rest
def test_brightness_contrast_saturation(factor: float, size: int) -> None:
    images = pictures(5, size, size)
    adjust = [
        (colour.BRIGHTNESS, TF.adjust_brightness),
        (colour.CONTRAST, TF.adjust_contrast),
        (colour.SATURATION, TF.adjust_saturation),
    ]
    for jitter, theirs in adjust:
        ours = with_one(images, jitter, torch.full((5,), factor), size)
        expected = torch.stack([theirs(image, factor) for image in images.float().div(255)])
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.1, 0.0, 0.04, 0.1, 0.25, 0.5])
def test_hue(shift: float) -> None:
    images = pictures(6, 24, 24)
    corners = torch.cartesian_prod(
        *[torch.tensor([0, 90, 91, 255], dtype=torch.uint8)] * 3
    ).T  # ties and greys
    images[0, :, :16, :4] = corners.reshape(3, 16, 4)
    planes, shifts = planes_of(images), torch.full((6,), shift)
    colour.rotate_hue(planes, colour.hue_centres(shifts)[..., None, None])
    for ours in (planes.transpose(0, 1), with_one(images, colour.HUE, shifts, 24)):
        expected = TF.adjust_hue(images.float().div(255), shift)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
        assert difference(ours, TF.adjust_hue(images, shift)) < TOLERANCE


def test_gray_and_solarize() -> None:
    images = pictures(4, 24, 24)
    for policy, expected in [
        (Policy(gray_p=1), TF.rgb_to_grayscale(images.float() / 255, 3)),
        (Policy(solarize_p=1), TF.solarize(images, 128).float() / 255),
    ]:
        draws = draw(policy, 4, seed=0, step=0, view="a")
        ours = apply(policy, images, draws, size=24, **PLAIN_NORM)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (32, 3), (33, 9), (64, 23), (16, 31)])
def test_blur(size: int, kernel: int) -> None:
    images, sigma = pictures(5, size, size), torch.tensor([0.1, 0.4, 1.0, 1.6, 2.0])
    policy = Policy(blur_p=1, blur_kernel=kernel)
    draws = replace(draw(policy, 5, seed=0, step=0, view="a"), sigma=sigma)
    ours = apply(policy, images, draws, size=size, **PLAIN_NORM)
    for i in range(5):
        expected = TF.gaussian_blur(images[i].float().div(255), [kernel, kernel], [float(sigma[i])] * 2)
        torch.testing.assert_close(ours[i], expected, atol=3e-4, rtol=0)


def reference_operation(name: str, image: Tensor, level: int, negative: bool) -> Tensor:
    """CLSA's operation in torchvision's words, on (3, h, w) uint8."""
    v, sign, size = level / 10, -1 if negative else 1, image.shape[-1]
    factor = 0.05 + 0.9 * v
    still = {"translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "angle": 0.0}
    shear = math.degrees(math.atan(0.3 * v * sign))
    return {
        "autocontrast": lambda: TF.autocontrast(image),
        "brightness": lambda: TF.adjust_brightness(image, factor),
        "color": lambda: TF.adjust_saturation(image, factor),
        "contrast": lambda: TF.adjust_contrast(image, factor),
        "equalize": lambda: TF.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: TF.posterize(image, 4 + int(4 * v)),
        "rotate": lambda: TF.rotate(image, int(30 * v) * sign),
        "sharpness": lambda: TF.adjust_sharpness(image, factor),
        "shear_x": lambda: TF.affine(image, **{**still, "shear": [shear, 0.0]}, center=[0, 0]),
        "shear_y": lambda: TF.affine(image, **{**still, "shear": [0.0, shear]}, center=[0, 0]),
        "solarize": lambda: TF.solarize(image, 256 - int(256 * v)),
        "translate_x": lambda: TF.affine(image, **{**still, "translate": [-int(0.3 * v * size) * sign, 0]}),
        "translate_y": lambda: TF.affine(image, **{**still, "translate": [0, -int(0.3 * v * size) * sign]}),
    }[name]()


@pytest.mark.parametrize("name", POOL)
def test_randaugment_operations(name: str) -> None:
    images = pictures(18, 32, 32)
    images[::2] = images[::2] // 2 + 40  # something to stretch
    images[0] = 77  # and nothing to stretch or equalise
    level, negative = np.arange(18) % 9 + 1, np.arange(18) >= 9
    ours = operate(name, planes_of(images), level, negative).transpose(0, 1)
    expected = [reference_operation(name, images[i], int(level[i]), bool(negative[i])) for i in range(18)]
    assert difference(ours, torch.stack(expected)) < TOLERANCE
    if name != "identity":
        assert difference(ours, images) > 0.5 * TOLERANCE


# -------------------------------------------------------------- whole policies


def reference_view(policy: Policy, image: Tensor, draws: Draws, i: int, size: int) -> Tensor:
    """One sample, one operation after the other, with torchvision's functional; `image` uint8, or float so that
    torchvision does not round after each operation."""
    mode = MODES[policy.interpolation]
    if policy.crop is None:
        image = TF.center_crop(
            TF.resize(image, [round(policy.margin * size)], mode, antialias=True), [size] * 2
        )
    else:
        sides = [np.array([side]) for side in image.shape[1:]]
        boxes = geometry.crop_boxes(policy, draws[i : i + 1], *sides, size)
        box = [int(side[0]) for side in (boxes.top, boxes.left, boxes.height, boxes.width)]
        image = TF.resized_crop(image, *box, [size, size], mode, antialias=True)
    image = image.clamp(0, 1) if image.is_floating_point() else image
    image = TF.horizontal_flip(image) if draws.flip[i] else image
    if draws.jitter[i]:
        adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for operation in draws.order[i].tolist():
            image = adjust[operation](image, float(draws.factors[i, operation]))
    image = TF.rgb_to_grayscale(image, 3) if draws.gray[i] else image
    if draws.blur[i]:
        image = TF.gaussian_blur(image, [policy.kernel(size)] * 2, [float(draws.sigma[i])] * 2)
    if draws.solarize[i]:
        image = TF.solarize(image, 0.5 if image.is_floating_point() else 128)
    for operation, level, negative in zip(
        draws.operation[i].tolist(), draws.level[i].tolist(), draws.negative[i].tolist(), strict=True
    ):
        if operation >= 0:
            levels = TF.to_dtype(image, torch.uint8, scale=True)
            image = reference_operation(POOL[operation], levels, level, negative)
    return image


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("source", ["dense", "ragged"])
def test_policy_equals_torchvision_operation_by_operation(name: str, source: str) -> None:
    policy, count = POLICIES[name], 24
    if policy.size:
        policy = policy.model_copy(update={"size": policy.size // 4})
    size = policy.size or 40
    images: Tensor | list[Tensor] = pictures(count, 32, 44)
    if source == "ragged":
        images = [picture(100 + 3 * i, 130 - 4 * i, i) for i in range(count)]
    draws = draw(policy, count, seed=3, step=5, view=name)
    ours = apply(policy, images, draws, size=40, **PLAIN_NORM)
    assert ours.shape == (count, 3, size, size)
    assert ours.dtype == torch.float32
    rounded = [difference(ours[i], reference_view(policy, images[i], draws, i, size)) for i in range(count)]
    assert np.mean(rounded) < TOLERANCE
    exact = [
        difference(ours[i], reference_view(policy, images[i].float() / 255, draws, i, size))
        for i in range(count)
    ]
    # RandAugment's reference rounds to 8 bits for each operation, and equalize and posterize turn a rounding into a
    # step of a level or more, which autocontrast may widen.
    steps = torch.tensor([POOL.index("equalize"), POOL.index("posterize")])
    smooth = ~torch.isin(draws.operation, steps).any(1)
    limit = 2 * TOLERANCE if policy.randaugment else 1e-4
    assert smooth.sum() >= 5
    assert max(np.array(exact)[smooth.numpy()]) < limit


@pytest.mark.parametrize("size", [56, 28])
def test_margin_is_resize_256_then_centre_crop_224(size: int) -> None:
    policy, images = Policy(margin=8 / 7), [picture(75, 100), picture(90, 60), picture(64, 64)]
    if size == 28:  # of one size, and already that of the view
        images = [picture(28, 28, seed) for seed in range(3)]
    draws = draw(policy, 3, seed=0, step=0, view="a")
    ours = apply(policy, images, draws, size=size, **PLAIN_NORM)
    for image, view in zip(images, ours, strict=True):
        expected = TF.center_crop(TF.resize(image, [size * 8 // 7], antialias=True), [size, size])
        assert difference(view, expected) < 0.6 / 255


def test_normalisation() -> None:
    images, policy = pictures(3, 16, 16), POLICIES["plain"]
    draws = draw(policy, 3, seed=0, step=0, view="a")
    ours = apply(policy, images, draws, size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    torch.testing.assert_close(ours, TF.normalize(images.float() / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))


@pytest.mark.parametrize("name", ["contrastive", "byol_2", "strong", "digits"])
def test_result_of_a_sample_does_not_depend_on_its_neighbours_in_the_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the world size nor the number of threads may change what a sample looks like."""
    policy, images = POLICIES[name], pictures(20, 32, 32)
    draws = draw(policy, 20, seed=1, step=2, view="a")
    whole = apply(policy, images, draws, size=32, **PLAIN_NORM)
    parts = [
        apply(policy, images[i : i + 5], draws[i : i + 5], size=32, **PLAIN_NORM) for i in range(0, 20, 5)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(apply(policy, list(images), draws, size=32, **PLAIN_NORM), whole)
    monkeypatch.setattr("raysurl.views.on_cpu.ALONE", 0)
    monkeypatch.setattr("raysurl.views.on_cpu.TOGETHER", 0)
    for threads in (3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(apply(policy, images, draws, size=32, **PLAIN_NORM), whole)
        assert torch.equal(apply(policy, list(images), draws, size=32, **PLAIN_NORM), whole)


@pytest.mark.parametrize("name", ["contrastive", "byol_1", "strong"])
def test_gray_images_stay_gray_and_one_channel_means_gray(name: str) -> None:
    policy, gray = POLICIES[name], pictures(16, 32, 32)[:, :1]
    draws = draw(policy, 16, seed=1, step=2, view="a")
    ours = apply(policy, gray.expand(-1, 3, -1, -1), draws, size=24, **PLAIN_NORM)
    torch.testing.assert_close(ours, ours[:, :1].expand_as(ours), atol=1e-3, rtol=0)
    torch.testing.assert_close(apply(policy, gray, draws, size=24, **PLAIN_NORM), ours)
    mixed = [image if i % 2 else image.expand(3, -1, -1) for i, image in enumerate(gray)]
    assert difference(apply(policy, mixed, draws, size=24, **PLAIN_NORM), ours) < 1e-6


def test_memory_layout_of_the_source_does_not_matter() -> None:
    policy, images = POLICIES["contrastive"], pictures(6, 120, 100)
    draws = draw(policy, 6, seed=1, step=2, view="a")
    ours = apply(policy, list(images), draws, size=64, **PLAIN_NORM)
    last = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    wider = [torch.nn.functional.pad(image, (3, 2, 1, 4))[:, 1:-4, 3:-2] for image in images]
    together = torch.stack(last).contiguous(memory_format=torch.channels_last)
    for images_ in (last, wider, together):
        found = apply(policy, images_, draws, size=64, **PLAIN_NORM)
        torch.testing.assert_close(found, ours, atol=2e-6, rtol=0)


def test_vectors_pass_and_bad_input_is_named() -> None:
    plain, vectors = POLICIES["plain"], torch.randn(4, 7)
    draws = draw(plain, 4, seed=0, step=0, view="a")
    assert torch.equal(apply(plain, vectors, draws, size=8, **PLAIN_NORM), vectors)
    images, weak = pictures(4, 16, 16), POLICIES["weak"]
    cases = [
        (weak, vectors, 8, "vectors cannot be augmented"),
        (plain, vectors.long(), 8, "vectors must be float"),
        (weak, images.float(), 8, "images must be uint8"),
        (weak, images[:, :2], 8, r"images must be \(b, 3, H, W\)"),
        (weak, images[:3], 8, "4 draws were given for 3 images"),
        (Policy(blur_p=1, blur_kernel=23), images, 8, "blur_kernel=23 is too wide for a view of 8 pixels"),
    ]
    for policy, data, size, message in cases:
        with pytest.raises(InputError, match=message):
            apply(policy, data, draws, size=size, **PLAIN_NORM)


def test_autocast_does_not_round_pixels() -> None:
    policy, images = POLICIES["contrastive"], pictures(8, 32, 32)
    draws = draw(policy, 8, seed=1, step=2, view="a")
    with torch.autocast("cpu", torch.bfloat16):
        inside = apply(policy, images, draws, size=32, **PLAIN_NORM)
    assert torch.equal(inside, apply(policy, images, draws, size=32, **PLAIN_NORM))


def test_empty_part_of_a_batch() -> None:
    draws = draw(POLICIES["contrastive"], 4, seed=0, step=0, view="a")[4:]
    empty = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    assert apply(POLICIES["contrastive"], empty, draws, size=16, **PLAIN_NORM).shape == (0, 3, 16, 16)
