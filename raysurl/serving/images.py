"""One image as a request brings it: what it is, by its own bytes, and its size, before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, UnidentifiedImageError

# What Pillow calls them. Formats without a mark of their own (TGA) and rare ones with large decoders stay out.
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
SEVERAL = ", ".join(list(FORMATS)[:-1]) + f" or {list(FORMATS)[-1]}"


class RefusedError(Exception):
    """A request that is not answered: the status of HTTP, one sentence, and headers for the answer."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def check(body: bytes, max_pixels: int) -> None:
    """Raises RefusedError: 400 for an empty or damaged image, 413 for too many pixels, 415 for another type."""
    if not body:
        raise RefusedError(400, "the request holds no image; send its bytes as the body")
    try:
        with Image.open(io.BytesIO(body), formats=list(FORMATS)) as image:
            width, height = image.size
    except UnidentifiedImageError:
        if _begins_as_an_image(body):
            raise RefusedError(400, "the image is damaged: its header cannot be read") from None
        raise RefusedError(415, f"what was sent is no {SEVERAL} image") from None
    except Image.DecompressionBombError:
        raise RefusedError(413, too_large(max_pixels)) from None
    except Exception:  # Pillow raises a dozen unrelated types on corrupt files
        raise RefusedError(400, "the image is damaged: its header cannot be read") from None
    if width * height > max_pixels:
        raise RefusedError(413, too_large(max_pixels, f"{width} × {height}"))


def too_large(max_pixels: int, size: str = "more") -> str:
    return f"the image has {size} pixels, and at most {max_pixels:,} are taken (max_pixels=)"


def _begins_as_an_image(body: bytes) -> bool:
    """Whether the first bytes are the mark of one of the formats."""
    for name in FORMATS:
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(body[:16]) is True:
            return True
    return False
