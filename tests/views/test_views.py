"""The randomness of views: what it depends on, and its distribution against torchvision's."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from scipy.ndimage import gaussian_filter
from torchvision.transforms import ColorJitter, RandomResizedCrop

from raysurl.errors import InputError
from raysurl.sampler import Request
from raysurl.views import POLICIES, Policy
from raysurl.views.augment import apply
from raysurl.views.augmenter import Augment
from raysurl.views.draws import LEVELS, OPERATIONS, Draws, draw
from raysurl.views.geometry import crop_boxes

SETTINGS = SimpleNamespace(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
MANY = 6000


def same(one: Draws, other: Draws, *, but: tuple[str, ...] = ()) -> bool:
    return all(
        torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Draws) if f.name not in but
    )


# ------------------------------------------------------- what they depend on


def test_draws_are_a_function_of_seed_step_and_view() -> None:
    def of(seed: int = 1, step: int = 2, view: str = "a") -> Draws:
        return draw(POLICIES["strong"], 32, seed=seed, step=step, view=view)

    assert same(of(), of())
    for other in (of(seed=2), of(step=3), of(view="b"), of(seed=2, step=1), of(step=2**40)):
        assert not torch.isclose(of().crop, other.crop).any(dim=(1, 2)).sum() > 3
        assert not torch.equal(of().order, other.order)


def test_draws_of_a_position_do_not_depend_on_the_batch_or_on_global_random_state() -> None:
    policy = POLICIES["strong"]
    torch.manual_seed(0)
    small = draw(policy, 8, seed=1, step=2, view="a")
    torch.manual_seed(1)
    assert same(small, draw(policy, 64, seed=1, step=2, view="a")[:8])
    assert same(small[3:6], draw(policy, 64, seed=1, step=2, view="a")[3:6])
    assert len(small[3:6]) == 3


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"flip": 0.0}, ("flip",)),
        ({"jitter_p": 0.0}, ("jitter",)),
        ({"jitter": (0.1, 0.1, 0.1, 0.0)}, ("factors",)),
        ({"gray_p": 1.0}, ("gray",)),
        ({"blur_p": 0.0}, ("blur",)),
        ({"solarize_p": 0.5}, ("solarize",)),
        ({"crop": None}, ()),
        ({"randaugment": 3}, ("operation", "level", "negative")),
    ],
)
def test_an_ablation_of_one_operation_leaves_the_others_as_they_were(
    change: dict[str, object], changed: tuple[str, ...]
) -> None:
    base = POLICIES["contrastive"]
    before = draw(base, 64, seed=1, step=2, view="a")
    after = draw(base.model_copy(update=change), 64, seed=1, step=2, view="a")
    assert same(before, after, but=changed)
    assert not any(torch.equal(getattr(before, name), getattr(after, name)) for name in changed)


# ------------------------------------------------------------ distributions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "crop", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (60, 200, (0.5, 1.0), (3 / 4, 4 / 3)),  # often no attempt fits: the fallback of a wide image
        (300, 100, (0.4, 0.9), (0.5, 0.6)),
        (10, 10, (0.9, 1.0), (1.3, 1.4)),  # no attempt ever fits
    ],
)
def test_crops_are_distributed_as_in_torchvision(
    height: int, width: int, crop: tuple[float, float], ratio: tuple[float, float]
) -> None:
    policy = Policy(crop=crop, ratio=ratio)
    draws = draw(policy, MANY, seed=0, step=0, view="a")
    boxes = crop_boxes(policy, draws, np.full(MANY, height), np.full(MANY, width), 32)
    ours = np.stack([boxes.top, boxes.left, boxes.height, boxes.width])
    assert (ours[2:] > 0).all()
    assert (ours[0] >= 0).all()
    assert (ours[1] >= 0).all()
    assert (ours[0] + ours[2] <= height).all()
    assert (ours[1] + ours[3] <= width).all()

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    params = [RandomResizedCrop.get_params(image, list(crop), list(ratio)) for _ in range(MANY)]
    theirs = np.array(params).T
    for quantity in (
        lambda box: box[2] * box[3],  # area
        lambda box: np.log(box[3] / box[2]),  # ratio
        lambda box: box[0],
        lambda box: box[1],
        lambda box: box[0] - (height - box[2]) / 2,  # position within the free play
    ):
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_all_positions_are_reached_and_equally_often() -> None:
    policy = Policy(crop=(0.25, 0.25), ratio=(1.0, 1.0))
    draws = draw(policy, MANY, seed=0, step=0, view="a")
    boxes = crop_boxes(policy, draws, np.full(MANY, 8), np.full(MANY, 8), 8)
    assert set(boxes.height) == set(boxes.width) == {4}
    for start in (boxes.top, boxes.left):
        assert stats.chisquare(np.bincount(start, minlength=5)).pvalue > 1e-3


def test_jitter_is_distributed_as_in_torchvision() -> None:
    policy = Policy(jitter=(0.4, 1.5, 0.2, 0.1), jitter_p=1.0)
    draws = draw(policy, MANY, seed=0, step=0, view="a")
    torch.manual_seed(0)
    jitter = ColorJitter(*policy.jitter)
    limits = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    params = [ColorJitter.get_params(*limits) for _ in range(MANY)]
    for i in range(4):
        theirs = [float(p[1 + i]) for p in params]
        assert stats.ks_2samp(draws.factors[:, i].numpy(), theirs).pvalue > 1e-3
        assert draws.factors[:, i].min() >= limits[i][0]
        assert draws.factors[:, i].max() <= limits[i][1]
    orders = Counter(map(tuple, draws.order.tolist()))
    assert set(orders) == set(itertools.permutations(range(4)))
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_frequencies_sigma_and_independence() -> None:
    policy = Policy(
        crop=(0.2, 1.0), flip=0.5, jitter=(0.4,) * 4, jitter_p=0.8, gray_p=0.2, blur_p=0.3, solarize_p=0.1
    )
    draws = draw(policy, MANY, seed=0, step=0, view="a")
    chosen = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.3, "solarize": 0.1}
    for name, p in chosen.items():
        assert stats.binomtest(int(getattr(draws, name).sum()), MANY, p).pvalue > 1e-3
    assert stats.kstest(draws.sigma.numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    table = torch.stack([getattr(draws, name).float() for name in chosen], 1)
    table = torch.cat([table, draws.crop.flatten(1), draws.place, draws.factors, draws.sigma[:, None]], 1)
    correlation = torch.corrcoef(table.T) - torch.eye(table.shape[1])
    assert correlation.abs().max() < 5 / MANY**0.5


def test_randaugment_takes_all_operations_levels_and_signs() -> None:
    draws = draw(POLICIES["strong"], MANY, seed=0, step=0, view="a")
    assert draws.operation.shape == (MANY, 5)
    used = draws.operation[draws.operation >= 0]
    assert stats.binomtest(len(used), 5 * MANY, 0.5).pvalue > 1e-3
    assert stats.chisquare(np.bincount(used, minlength=OPERATIONS)).pvalue > 1e-3
    levels = np.bincount(draws.level.flatten(), minlength=LEVELS + 1)
    assert levels[0] == 0
    assert stats.chisquare(levels[1:]).pvalue > 1e-3
    assert stats.binomtest(int(draws.negative.sum()), 5 * MANY, 0.5).pvalue > 1e-3


# ------------------------------------------------------------------ policies


def test_policies_have_the_papers_numbers() -> None:
    contrastive = {"crop": (0.2, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8}
    byol = {"crop": (0.08, 1.0), "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2, "flip": 0.5}
    ressl = {"jitter": (0.4, 0.4, 0.2, 0.1), "blur_p": 0.5, "solarize_p": 0.1, "gray_p": 0.2}
    expected = {
        "weak": {"crop": (0.2, 1.0), "flip": 0.5, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0},
        "contrastive": {**contrastive, "gray_p": 0.2, "blur_p": 0.5, "solarize_p": 0.0},
        "byol_1": {**byol, "blur_p": 1.0, "solarize_p": 0.0, "interpolation": "bicubic"},
        "byol_2": {**byol, "blur_p": 0.1, "solarize_p": 0.2, "interpolation": "bicubic"},
        "ressl_imagenet": {**ressl, "crop": (0.14, 1.0)},
        "crop_224": {**ressl, "size": 224, "crop": (0.14, 1.0)},
        "crop_96": {**ressl, "size": 96, "crop": (0.05, 0.429)},
        "conference_192": {**contrastive, "size": 192, "crop": (0.172, 0.86), "solarize_p": 0.0},
        "superand": {"jitter": (0.4, 0.4, 0.4, 0.4), "jitter_p": 1.0, "gray_p": 0.2, "blur_p": 0.0},
        "mvmr": {"jitter": (0.8, 0.8, 0.8, 0.2), "blur_p": 1.0, "crop": (0.08, 1.0)},
    }
    for name, settings in expected.items():
        assert {key: getattr(POLICIES[name], key) for key in settings} == settings, name
    assert POLICIES["plain"].is_identity
    assert not any(policy.is_identity for name, policy in POLICIES.items() if name != "plain")
    sizes = [224, 192, 160, 128, 96, 64, 32, 16, 8]
    assert [Policy().kernel(size) for size in sizes] == [23, 19, 17, 13, 9, 7, 3, 3, 3]
    whole = [name for name, policy in POLICIES.items() if policy.blur_kernel == "whole"]
    assert whole == ["mocov2", *(f"conference_{size}" for size in (224, 192, 160, 128, 96))]


@pytest.mark.parametrize("size", [8, 32, 96])
def test_a_whole_blur_is_as_wide_as_its_sigma_says_at_every_size(size: int) -> None:
    """Against scipy's filter, and where they fit the 23 pixels that GenURL names."""
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    policy = Policy(blur_p=1, blur_sigma=(2.0, 2.0), blur_kernel="whole")
    draws = draw(policy, 2, seed=0, step=0, view="view")
    plain = {"size": size, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found = apply(policy, images, draws, **plain)
    expected = gaussian_filter(
        images.numpy() / 255, (0, 0, 2, 2), mode="mirror", truncate=min(4, (size - 1) / 2)
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    narrow = apply(policy.model_copy(update={"blur_kernel": None}), images, draws, **plain)
    assert (narrow - found).abs().max() > 0.01
    if size > 11:
        named = apply(policy.model_copy(update={"blur_kernel": 23}), images, draws, **plain)
        torch.testing.assert_close(found, named, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"crops": 1},
        {"crop": (0.9, 0.2)},
        {"crop": (0.0, 1.0)},
        {"flip": 1.5},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"blur_kernel": 4},
        {"blur_kernel": "all"},
        {"blur_sigma": (0.0, 1.0)},
        {"interpolation": "cubic"},
        {"margin": 0.5},
    ],
)
def test_a_policy_refuses_what_it_cannot_do(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(settings)


# ------------------------------------------------------------------- Augment


def images_of(index: np.ndarray) -> torch.Tensor:
    return torch.stack(
        [
            torch.randint(
                0, 256, (3, 20, 24), generator=torch.Generator().manual_seed(int(i)), dtype=torch.uint8
            )
            for i in index
        ]
    )


@pytest.fixture
def augment() -> Augment:
    policies = {
        "student": POLICIES["contrastive"],
        "teacher": POLICIES["weak"],
        "twin": POLICIES["contrastive"],
    }
    return Augment(policies, SETTINGS, seed=3, batch_size=24)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_together_make_the_views_of_the_global_batch(augment: Augment, ranks: int) -> None:
    index = np.arange(100, 124)
    whole = augment(Request(5, 0, index), images_of(index))
    share = 24 // ranks
    parts = [index[r * share : (r + 1) * share] for r in range(ranks)]
    views = [augment(Request(5, r * share, part), images_of(part)) for r, part in enumerate(parts)]
    for view in whole:
        joined = torch.cat([v[view] for v in views])
        torch.testing.assert_close(joined, whole[view], atol=1e-5, rtol=0)


def test_views_differ_by_name_and_step_and_survive_pickling(augment: Augment) -> None:
    index = np.arange(24)
    first = augment(Request(5, 0, index), images_of(index))
    assert {view: tuple(x.shape) for view, x in first.items()} == dict.fromkeys(first, (24, 3, 16, 16))
    assert not torch.allclose(first["student"], first["twin"])
    later = augment(Request(6, 0, index), images_of(index))
    assert not torch.allclose(first["teacher"], later["teacher"])
    copy = pickle.loads(pickle.dumps(augment))
    again = copy(Request(5, 0, index), images_of(index), torch.device("cpu"))
    assert all(torch.equal(first[view], again[view]) for view in first)


def test_augment_needs_its_part_of_the_batch(augment: Augment) -> None:
    index = np.arange(8)
    with pytest.raises(ValueError, match="do not fit"):
        augment(Request(5, 0, index), images_of(index[:4]))
    with pytest.raises(ValueError, match="do not fit"):
        augment(Request(5, 20, index), images_of(index))


def test_augment_refuses_a_blur_wider_than_the_view() -> None:
    policies = {"student": Policy(blur_p=0.5, blur_kernel=41)}
    with pytest.raises(InputError, match=r"views\.policies\.student\.blur_kernel=41 .* at most 31"):
        Augment(policies, SETTINGS, seed=0, batch_size=8)


def test_vectors_are_views_of_themselves() -> None:
    augment = Augment({"a": POLICIES["plain"]}, SETTINGS, seed=0, batch_size=8)
    vectors = torch.randn(8, 5)
    assert torch.equal(augment(Request(0, 0, np.arange(8)), vectors)["a"], vectors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", POLICIES)
def test_gpu_makes_the_same_views(name: str) -> None:
    augment, index = Augment({"a": POLICIES[name]}, SETTINGS, seed=0, batch_size=16), np.arange(16)
    request, images = Request(0, 0, index), images_of(index)
    on_gpu = augment(request, images, "cuda")["a"]
    assert on_gpu.is_cuda
    assert (on_gpu.cpu() - augment(request, images)["a"]).abs().mean() < 1e-3
