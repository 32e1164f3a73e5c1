"""One sample's bytes or array → right-side-up RGB, uint8 (3, h, w); vectors pass as float32 (D,).

A plain function of its input, free of torch and Ray, so that any process of a cluster can run it at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from raysurl.data.depth import Depth, DepthError, depth_of

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


def decode(sample: bytes | Array, depth: Depth | None = None) -> Array:
    """Decode encoded image bytes, an array (h, w) | (h, w, c) | (c, h, w), or a vector (D,).

    Channels: 1 grey (repeated), 2 grey with alpha, 3 RGB, 4 RGBA; alpha is dropped. `depth`: the range of the data
    set's pixels, where they are wider than a byte; without one the sample is taken for a data set of its own. EXIF
    orientation is applied. The array may be read-only, and lie in memory channel by channel or pixel by pixel. Raises
    DecodeError, whatever the image library raised.
    """
    pixels = pixels_of(sample)
    if pixels.ndim == 1:
        return pixels
    try:
        narrow = (depth or depth_of([pixels]) or Depth(0, 8)).to_bytes(pixels)
    except DepthError as error:
        raise DecodeError(str(error)) from None
    return narrow if len(narrow) == 3 else np.repeat(narrow, 3, axis=0)


def pixels_of(sample: bytes | Array) -> Array:
    """The sample's own integers (1 | 3, h, w), as wide as it holds them; or a vector (D,) float32."""
    if isinstance(sample, np.ndarray):
        return _vector(sample) if sample.ndim == 1 else _channels_first(sample)
    if not sample:
        raise DecodeError("it is empty")
    try:
        with Image.open(io.BytesIO(sample)) as image:
            return pixels_of_pil(image)
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises a dozen unrelated types on corrupt files
        raise DecodeError(_reason(error)) from None


def is_wide(sample: bytes | Array) -> bool:
    """Whether the sample's integers are wider than a byte, from its header alone; False for what is no image."""
    if isinstance(sample, np.ndarray):
        return sample.ndim > 1 and sample.dtype != np.uint8
    try:
        with Image.open(io.BytesIO(sample)) as image:
            return image.mode.startswith("I") or _sixteen_bit_colour(image)
    except Exception:  # whatever it is, decoding will say it
        return False


_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def pixels_of_pil(image: Image.Image) -> Array:
    """A Pillow image, of any mode and orientation, as integers (1 | 3, h, w)."""
    if image.mode == "F":
        raise DecodeError("it holds floating-point pixels; images of integers are read")
    if _sixteen_bit_colour(image):
        return _both_bytes(image)
    image = _upright(image)
    if image.mode.startswith("I"):  # wide grey: Pillow's own conversion would clip at 255
        return np.asarray(image)[None]
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before dropping a palette's alpha
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    try:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise DecodeError(_reason(error)) from None
    # pixel by pixel in memory, as it was decoded and as it is resized fastest
    return np.asarray(rgb).transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says; the same image where that says nothing, of which Pillow would make a copy."""
    image.load()  # an orientation may stand behind the pixels
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return image if orientation == 1 else ImageOps.exif_transpose(image)


# -------------------------------------------------------------------- colours of 16 bits


def _raw_mode(tile: Any) -> str:
    """How Pillow is about to unpack a tile."""
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _sixteen_bit_colour(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", [])
    return bool(tiles) and all(_raw_mode(tile) in _OTHER_BYTE for tile in tiles)


_OTHER_BYTE = {
    **{f"{mode};16B": (f"{mode};16L", "high") for mode in ("RGB", "RGBA", "RGBX")},
    **{f"{mode};16L": (f"{mode};16B", "high") for mode in ("RGB", "RGBA", "RGBX")},
    **{f"{mode};16N": (f"{mode};16B", "high") for mode in ("RGB", "RGBA", "RGBX")},
    "LA;16B": ("RGBA", "pairs"),
}


def _both_bytes(image: Image.Image) -> Array:
    """Colours of 16 bits, of which Pillow keeps the high byte: read again as of the other byte order for the low one.

    Grey with alpha is read as four bytes to a pixel, of which the first two are the grey's.
    """
    file: Any = image  # Pillow's files know more than its images
    stream, tiles = file.fp, list(file.tile)
    other: Any = Image.open(stream)
    other.tile = [_with_raw_mode(tile, _OTHER_BYTE[_raw_mode(tile)][0]) for tile in tiles]
    if _OTHER_BYTE[_raw_mode(tiles[0])][1] == "pairs":
        bytes_of = np.asarray(ImageOps.exif_transpose(other)).astype(np.uint16)
        return (bytes_of[..., :1] << 8 | bytes_of[..., 1:2]).transpose(2, 0, 1)
    low = np.asarray(ImageOps.exif_transpose(other)).astype(np.uint16)
    stream.seek(0)
    high = np.asarray(ImageOps.exif_transpose(Image.open(stream))).astype(np.uint16)
    return np.ascontiguousarray((high << 8 | low)[..., :3].transpose(2, 0, 1))


def _with_raw_mode(tile: Any, mode: str) -> Any:
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return type(tile)(*tile[:3], arguments)


# -------------------------------------------------------------------- arrays


def _channels_first(array: Array) -> Array:
    """(h, w) | (h, w, c) | (c, h, w) of integers → (1 | 3, h, w)."""
    if array.dtype.kind not in "uib":
        raise DecodeError(f"it holds values of type {array.dtype}; images of integers are read")
    if array.ndim == 2:
        array = array[None]
    elif array.shape[2] in (1, 3) or (array.shape[2] == 4 and array.shape[0] not in (1, 3, 4)):
        array = array.transpose(2, 0, 1)
    if array.dtype.kind == "b":
        array = array.astype(np.int8)
    return array if array.shape[0] == 1 else array[:3]


def _vector(array: Array) -> Array:
    vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        raise DecodeError("the vector holds a value that is not finite")
    return vector


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "it is not an image" if "cannot identify image file" in text else text[:200]
