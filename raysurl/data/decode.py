"""One sample's bytes or array → right-side-up RGB, uint8 (3, h, w); vectors pass as float32 (D,).

A plain function of its input, free of torch and Ray, so that any process of a cluster can run it at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]


class DecodeError(ValueError):
    """A sample cannot be read; the message says why."""


@dataclass(frozen=True)
class Flatten:
    """uint8 (3, h, w) -> float32 vector in [0, 1]: of the mean of the channels (`grey`), or of all three (`rgb`).

    `width`: values that every sample must have; DecodeError for one of another size. Vectors stay as they are.
    """

    kind: str
    width: int | None = None

    def __call__(self, image: Array) -> Array:
        if image.ndim == 1:
            return image
        pixels = image.mean(axis=0, dtype=np.float32) if self.kind == "grey" else image
        vector = pixels.reshape(-1).astype(np.float32) / np.float32(255)
        if self.width is not None and len(vector) != self.width:
            raise DecodeError(
                f"it has {image.shape[1:]} pixels, {len(vector)} values, and the first {self.width}"
            )
        return vector


def decode(sample: bytes | Array) -> Array:
    """Decode encoded image bytes, an array (h, w) | (h, w, c) | (c, h, w), or a vector (D,).

    Channels: 1 grey (repeated), 3 RGB, 4 RGBA (alpha dropped). 16-bit values keep their high byte. EXIF
    orientation is applied. Raises DecodeError, whatever the image library raised.
    """
    if isinstance(sample, np.ndarray):
        return _vector(sample) if sample.ndim == 1 else _channels_first(sample)
    if not sample:
        raise DecodeError("it is empty")
    try:
        with Image.open(io.BytesIO(sample)) as image:
            return from_pil(image)
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises a dozen unrelated types on corrupt files
        raise DecodeError(_reason(error)) from None


def from_pil(image: Image.Image) -> Array:
    """A Pillow image, of any mode and orientation, as uint8 (3, h, w)."""
    if image.mode == "F":
        raise DecodeError("it holds floating-point pixels; 8-bit and 16-bit images are read")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip at 255
        return _channels_first((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before dropping a palette's alpha
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _channels_first(array: Array) -> Array:
    """(h, w) | (h, w, c) | (c, h, w) of 8 or 16 bits → uint8 (3, h, w), contiguous."""
    if array.dtype == np.uint16:
        array = array >> 8
    if array.ndim == 2:
        array = array[None]
    elif array.shape[2] in (1, 3) or (array.shape[2] == 4 and array.shape[0] not in (1, 3, 4)):
        array = array.transpose(2, 0, 1)
    channels = np.broadcast_to(array, (3, *array.shape[1:])) if array.shape[0] == 1 else array[:3]
    return np.ascontiguousarray(channels, dtype=np.uint8)


def _vector(array: Array) -> Array:
    vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        raise DecodeError("the vector holds a value that is not finite")
    return vector


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "it is not an image" if "cannot identify image file" in text else text[:200]
