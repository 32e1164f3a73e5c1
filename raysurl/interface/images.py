"""What a person holds in Python, as images that the package reads.

Letters: N samples, C channels (1, 3 or 4), H×W pixels, D values of a vector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raysurl.data import storage
from raysurl.data.dataset import Samples
from raysurl.data.decode import Array, DecodeError, pixels_of_pil
from raysurl.data.depth import Depth
from raysurl.data.folders import is_image
from raysurl.data.manifest import Listing
from raysurl.data.names import flattened, measured, open_samples
from raysurl.data.readers import Encoded, Stamp
from raysurl.data.tables import ENDINGS
from raysurl.errors import InputError, first_line
from raysurl.paths import given_path
from raysurl.recipe import Data

VALID = (
    "an array or a tensor of images (N,H,W,C), (N,C,H,W) or (N,H,W), a list of images, a torch Dataset, or the path of"
    " a folder, Parquet or NumPy file"
)
CHANNELS = (1, 3, 4)
SLACK = 1e-3  # by which floats may leave 0…1, as resizing makes them do
BLOCK = 1024  # images that are turned from floats into bytes at once
OF_ITSELF = re.compile(r"digits|(torchvision|planetoid):.+")  # data sets that are named and not located


def located(data: Any) -> dict[str, Any] | None:
    """The settings that name data which are not in memory: a path, a URI, or a data set's name; None for all else."""
    if not isinstance(data, str | os.PathLike):
        return None
    text = os.fspath(data)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if OF_ITSELF.fullmatch(text):
        return {"data.name": text}
    name = _kind_of(text)
    return {"data.name": name, "data.path": storage.absolute(text)}


def _kind_of(text: str) -> str:
    """What a path holds, by its name, or by the first file in the folder that tells."""
    if text.lower().endswith((".npy", ".npz")):
        return "npz"
    if text.lower().endswith(ENDINGS):
        return "parquet"
    if not storage.is_uri(text):
        for _, _, names in os.walk(given_path("data", text)):
            for name in names:
                if is_image(name):
                    return "folder"
                if name.lower().endswith(ENDINGS):
                    return "parquet"
    return "folder"


# -------------------------------------------------------------------- arrays


def dense(data: Any, what: str) -> Array | None:
    """An array of images (N,H,W) or (N,H,W,C), or of vectors (N,D), if `data` is one as a whole; None where it is not.

    Floats in 0…1 become bytes. Raises InputError, which calls the data `what`, for an array that holds no images.
    """
    if not isinstance(data, np.ndarray | torch.Tensor):
        return None
    array = _numpy(data)
    if array.dtype == object:
        return None
    if array.dtype.kind not in "uibf":
        raise InputError(f"{what} is an array of {array.dtype}; give {VALID}")
    if not array.size:
        raise InputError(f"{what} is an array of shape {array.shape}, which holds no image; give {VALID}")
    if array.ndim == 2:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{what} holds vectors with values that are not finite")
        return array.astype(np.float32) if array.dtype.kind == "f" else array
    if array.ndim == 3 and (
        array.shape[2] in CHANNELS or (array.shape[0] == 3 and isinstance(data, torch.Tensor))
    ):
        raise InputError(
            f"{what} of shape {array.shape} is one image; give several, or this one as {what}[None]"
        )
    if array.ndim == 4:
        array = _channels_last(array, first=isinstance(data, torch.Tensor), what=what)
    if array.ndim not in (3, 4):
        raise InputError(f"{what} is an array of shape {array.shape}; give {VALID}")
    return as_bytes(array, what) if array.dtype.kind == "f" else np.ascontiguousarray(array)


def _numpy(data: Any) -> Array:
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.dtype in (torch.bfloat16, torch.float16) else data).numpy()
    found: Array = data
    return found


def _channels_last(array: Array, *, first: bool, what: str) -> Array:
    """(…, H, W, C), or (…, H, W) of one channel. `first`: where both ends could be channels, they are in front."""
    front, back = array.shape[-3] in CHANNELS, array.shape[-1] in CHANNELS
    if not front and not back:
        raise InputError(
            f"{what} of shape {array.shape} has its channels neither first nor last; images have 1, 3 or 4"
        )
    if front and (first or not back):
        array = np.moveaxis(array, -3, -1)
    return array[..., 0] if array.shape[-1] == 1 else array


def as_bytes(array: Array, what: str) -> NDArray[np.uint8]:
    """Floats in 0…1 as 0…255, rounded. Raises InputError for other floats."""
    out = np.empty(array.shape, np.uint8)
    rows, target = (array, out) if array.ndim > 2 else (array[None], out[None])
    for at in range(0, len(rows), BLOCK):
        block = rows[at : at + BLOCK]
        low, high = float(block.min()), float(block.max())
        if not (low >= -SLACK and high <= 1 + SLACK):
            found = (
                "values that are not finite" if not np.isfinite(block).all() else f"{low:.4g} to {high:.4g}"
            )
            raise InputError(
                f"{what} is of floats, which must lie in 0 to 1, and holds {found}; give bytes (uint8), or leave out"
                " Normalize: the recipe normalises"
            )
        target[at : at + BLOCK] = np.rint(np.clip(block, 0, 1) * 255)
    return out


# -------------------------------------------------------------------- one image


def image_of(item: Any, what: str) -> Array | bytes:
    """One image, as (H, W) or (H, W, C) integers, or, of a path or bytes, as the encoded bytes. Raises InputError."""
    if isinstance(item, Image.Image):
        try:
            pixels = pixels_of_pil(item)
        except (DecodeError, OSError, ValueError) as error:
            raise InputError(f"{what} cannot be read: {first_line(error)}") from None
        return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if isinstance(item, str | os.PathLike):
        try:
            return Path(item).expanduser().read_bytes()
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
            raise InputError(f"{what}={os.fspath(item)!r} cannot be read: {reason}") from None
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray | torch.Tensor):
        array = _numpy(item)
        if array.size and array.ndim in (2, 3) and array.dtype.kind in "uibf":
            if array.ndim == 3:
                array = _channels_last(array, first=isinstance(item, torch.Tensor), what=what)
            return as_bytes(array, what) if array.dtype.kind == "f" else array
        raise InputError(
            f"{what} is {array.dtype} of shape {array.shape}; an image is (H,W), (H,W,C) or (C,H,W) of integers, or of"
            " floats in 0 to 1"
        )
    raise InputError(
        f"{what} is of type {type(item).__name__}; an image is a PIL image, an array, a tensor, or a path"
    )


# -------------------------------------------------------------------- many images


@dataclass(frozen=True, eq=False)
class GivenItems:
    """The samples of a list or Dataset, one at a time; `what` is what messages call it."""

    data: Any
    what: str

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Array | bytes, Any]:
        """Image and label (None where there is none). Raises InputError."""
        what = f"{self.what}[{index}]"
        try:
            item = self.data[index]
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{what} cannot be read: {type(error).__name__}: {first_line(error)}") from error
        label = None
        if isinstance(item, dict):
            label = item.get("label")
            item = next((item[key] for key in ("image", "img") if key in item), item)
        elif isinstance(item, tuple | list) and item and not isinstance(item[0], int | float):
            item, label = item[0], item[1] if len(item) > 1 else None
        return image_of(item, what), scalar(label)


def items_of(data: Any, what: str) -> GivenItems:
    """Raises InputError for what has no samples by number."""
    if isinstance(data, Image.Image | bytes):
        data = [data]
    if isinstance(data, torch.utils.data.DataLoader):
        raise InputError(
            f"{what} is a DataLoader, whose batches are shuffled; give its dataset, {what}.dataset"
        )
    known = (
        isinstance(data, Sized) and hasattr(data, "__getitem__") and not isinstance(data, dict | set | str)
    )
    if not known or hasattr(data, "iloc"):  # a data frame's numbers are those of its columns
        raise InputError(f"{what} is of type {type(data).__name__}; give {VALID}")
    if not len(data):
        raise InputError(f"{what} is empty; give one image or more")
    return GivenItems(data, what)


def scalar(label: Any) -> int | str | None:
    """A label as Python has it; None for what is none, as the targets of a detection data set."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic) and getattr(label, "ndim", 0) == 0:
        label = label.item()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return label if isinstance(label, int | str) else None


@dataclass(frozen=True, eq=False)
class MemoryReader:
    """Reads samples of this process's memory, as raysurl.data.readers has it."""

    data: Array | GivenItems
    in_memory: ClassVar[bool] = True
    grouped: ClassVar[bool] = False

    def read(
        self, path: str, group: int, rows: NDArray[np.int64], stamp: Stamp | None = None
    ) -> Sequence[Encoded]:
        if isinstance(self.data, GivenItems):
            return [self.data[int(row)][0] for row in rows]
        return list(self.data[rows])


def samples_of(images: Any, data: Data, what: str = "images", depth: Depth | None = None) -> Samples:
    """Samples of whatever is given, without labels, prepared as the section `data` says. Raises InputError.

    `depth`: the range of wide pixels that the network was trained with.
    """
    plain = Data(flatten=data.flatten, bits=data.bits, max_unreadable=0, labels="none")
    if isinstance(images, str | os.PathLike) and is_image(os.fsdecode(images)) and Path(images).is_file():
        images = [images]
    if settings := located(images):
        changes = {key.removeprefix("data."): value for key, value in settings.items()}
        column = {"image_column": data.image_column, "label_column": data.label_column}
        found = open_samples(plain.model_copy(update=changes | column), "train", seed=0, depth=depth)
        assert found is not None
        return found
    array = dense(images, what)
    given = items_of(images, what) if array is None else array
    samples = Samples(Listing.of_rows(what, len(given)), MemoryReader(given))
    samples = measured(samples, plain, "train", depth)
    return samples if data.flatten is None else flattened(samples, data.flatten)
