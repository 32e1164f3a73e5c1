"""What is known of published data sets before they are there: how many samples they train on, and of what size."""

from __future__ import annotations

from dataclasses import dataclass

from raysurl.recipe import Data


@dataclass(frozen=True)
class KnownData:
    """`samples` of the training split as `open_samples` lists it; `shape`: of an image (height, width), where all have
    one; `width`: of a vector."""

    samples: int
    shape: tuple[int, int] | None = None
    width: int | None = None


IMAGENET, TINY_IMAGENET, COIL_20 = (
    KnownData(1_281_167),
    KnownData(100_000, (64, 64)),
    KnownData(1440, (128, 128)),
)
BY_NAME = {
    "digits": KnownData(1437, (8, 8)),
    "torchvision:CIFAR10": KnownData(50_000, (32, 32)),
    "torchvision:CIFAR100": KnownData(50_000, (32, 32)),
    "torchvision:STL10": KnownData(105_000, (96, 96)),  # train + unlabeled
    "torchvision:SVHN": KnownData(73_257, (32, 32)),
    "torchvision:MNIST": KnownData(60_000, (28, 28)),
    "torchvision:FashionMNIST": KnownData(60_000, (28, 28)),
    "planetoid:Cora": KnownData(2708, width=1433),
    "planetoid:CiteSeer": KnownData(3327, width=3703),
    "planetoid:PubMed": KnownData(19_717, width=500),
}
# folders of images are known by what their recipe, or their path, calls them
BY_WORD = {
    "tiny_imagenet": TINY_IMAGENET,
    "tiny-imagenet": TINY_IMAGENET,
    "imagenet": IMAGENET,
    "coil20": COIL_20,
    "coil-20": COIL_20,
    "cub200": KnownData(5994),
    "dogs": KnownData(12_000),
}


def known_of(data: Data, recipe: str | None) -> KnownData | None:
    """Of the data that a recipe names; None where nothing is known but, perhaps, `data.limit`."""
    found = BY_NAME.get(data.name)
    if found is None and data.name == "folder":
        words = [data.path or "", recipe or ""]
        found = next(
            (known for text in words for word, known in BY_WORD.items() if word in text.lower()), None
        )
    if data.limit is None:
        return found
    if found is None:
        return KnownData(data.limit)
    return KnownData(min(found.samples, data.limit), found.shape, found.width)


def width_of(known: KnownData, data: Data) -> int | None:
    """Values of a sample that is a vector, of its own or by `data.flatten`; None: an image, or not known."""
    if known.width is not None or data.flatten is None or known.shape is None:
        return known.width
    return known.shape[0] * known.shape[1] * (3 if data.flatten == "rgb" else 1)
