import numpy as np
import pytest
from image_files import BLUE, RED, encoded, random_png, two_colours
from PIL import Image

from raysurl.data.decode import DecodeError, decode


def colour(array: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    return tuple(int(v) for v in array[:, row, column])


def test_rgb_pixels_are_exact_and_channels_come_first() -> None:
    out = decode(encoded(two_colours(12, 8)))
    assert out.shape == (3, 8, 12)
    assert out.dtype == np.uint8
    assert out.transpose(1, 2, 0).flags.c_contiguous  # a pixel's channels lie together
    assert colour(out, 0, 0) == RED
    assert colour(out, 7, 11) == BLUE


def test_grey_is_repeated() -> None:
    out = decode(encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))))
    assert (out == np.arange(64).reshape(1, 8, 8)).all()


def test_rgba_loses_its_alpha() -> None:
    image = two_colours()
    image.putalpha(100)
    assert colour(decode(encoded(image)), 0, 0) == RED


def test_palette_with_transparency() -> None:
    image = two_colours().quantize(4)
    out = decode(encoded(image, transparency=b"\x00\xff"))
    assert colour(out, 0, 0) == RED
    assert colour(out, 0, 11) == BLUE


def test_cmyk_jpeg_keeps_its_colours() -> None:
    out = decode(encoded(two_colours(32, 16).convert("CMYK"), "JPEG", quality=95))
    assert out.shape == (3, 16, 32)
    assert np.abs(np.subtract(colour(out, 8, 4), RED)).max() < 12
    assert np.abs(np.subtract(colour(out, 8, 28), BLUE)).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    out = decode(encoded(Image.fromarray(values)))
    assert out[0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert (out[0] == out[2]).all()


# where the top left corner of the picture is stored, for each EXIF orientation (row, column: 0 first, -1 last)
STORED_CORNER = {
    1: (0, 0),
    2: (0, -1),
    3: (-1, -1),
    4: (-1, 0),
    5: (0, 0),
    6: (-1, 0),
    7: (-1, -1),
    8: (0, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_images_arrive_right_side_up(orientation: int) -> None:
    upright = Image.new("RGB", (12, 8), (128, 128, 128))
    upright.paste(RED, (0, 0, 4, 4))  # only the top left corner is red
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    assert stored.getpixel(tuple(STORED_CORNER[orientation][i] % stored.size[1 - i] for i in (1, 0))) == RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = decode(encoded(stored, exif=exif))
    assert out.shape == (3, 8, 12)
    assert colour(out, 1, 1) == RED
    assert colour(out, 6, 10) == (128, 128, 128)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"plain text", "not an image"),
        (random_png(0)[:60], "(?i)truncated|broken"),
        (encoded(two_colours(64, 64), "JPEG")[:400], "(?i)truncated|broken"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "float TIFF"],
)
def test_what_is_no_image_is_a_decode_error(data: bytes, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        decode(data)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4), (3, 6, 5), (1, 6, 5), (3, 6, 4)])
def test_arrays_in_any_layout(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = decode(array)
    assert out.shape[:2] == (3, 6)
    if len(shape) == 3 and shape[0] == 6:
        assert out.shape == (3, 6, 5)
        assert (out[0] == array[..., 0]).all()
        assert (out[2] == array[..., min(2, shape[2] - 1)]).all()
    elif len(shape) == 3:
        assert (out[2] == array[-1]).all()


def test_vectors_pass_as_float32_unless_not_finite() -> None:
    out = decode(np.array([1.5, -2.0]))
    assert out.dtype == np.float32
    assert out.tolist() == [1.5, -2.0]
    with pytest.raises(DecodeError, match="not finite"):
        decode(np.array([1.0, np.nan]))
