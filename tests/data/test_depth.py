"""Integer pixels wider than a byte: one range for a data set, found once, told, and kept for the run's life."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, image_folder
from PIL import Image

from raysurl.data import manifest
from raysurl.data.dataset import Samples
from raysurl.data.decode import DecodeError, decode
from raysurl.data.depth import Depth, DepthError, depth_of
from raysurl.data.names import open_samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError
from raysurl.recipe import Data

BITS = {
    "8 in uint16": (8, np.uint16),
    "10": (10, np.uint16),
    "12": (12, np.uint16),
    "16": (16, np.uint16),
} | {
    "8 in int32": (8, np.int32),
    "12 in int32": (12, np.int32),
    "20 in int32": (20, np.int32),
}


def png_of_16_bits(array: np.ndarray) -> bytes:
    """(h, w, 1 | 2 | 3 | 4) uint16 as PNG: grey, grey with alpha, RGB, RGBA."""
    height, width, channels = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def images_of(bits: int, dtype: type, count: int = 6) -> np.ndarray:
    """(count, 8, 8): dark ones, and one that uses the whole range."""
    images = np.random.default_rng(bits).integers(0, 2 ** (bits - 3), (count, 8, 8))
    images[3].flat[0] = 2**bits - 1
    return images.astype(dtype)


def written(root: Path, kind: str, images: np.ndarray) -> dict[str, object]:
    """The images in files of a kind; what the recipe's data section says of them."""
    root.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez(root / "x.npz", images=images)
        return {"name": "npz", "path": str(root / "x.npz")}
    if kind == "npy":
        np.save(root / "x.npy", images)
        return {"name": "npz", "path": str(root / "x.npy")}
    form = "PNG" if kind == "png" or (kind == "parquet" and images.dtype == np.uint16) else "TIFF"
    files = [encoded(Image.fromarray(image), form) for image in images]
    if kind == "parquet":
        pq.write_table(pa.table({"image": files}), root / "x.parquet", row_group_size=2)
        return {"name": "parquet", "path": str(root / "x.parquet")}
    for i, content in enumerate(files):
        (root / f"{i}.{form.lower()}").write_bytes(content)
    return {"name": "folder", "path": str(root)}


def opened(data: dict[str, object], path: Path | None = None, **more: object) -> tuple[Samples, Source]:
    settings = Data(**{**data, **more})
    samples = open_samples(settings, "train", 0)
    assert samples is not None
    return samples, open_source(samples, settings, manifest_path=path)


@pytest.mark.parametrize("kind", ["png", "tiff", "npz", "npy", "parquet"])
@pytest.mark.parametrize("case", BITS)
def test_a_data_set_is_scaled_by_its_own_range(tmp_path: Path, kind: str, case: str) -> None:
    bits, dtype = BITS[case]
    if kind == "png" and dtype is np.int32:
        return  # no such PNG
    images = images_of(bits, dtype)
    samples, source = opened(written(tmp_path, kind, images))
    assert samples.depth == Depth(0, bits)
    for got, image in zip(samples.load(range(6)), images, strict=True):
        assert np.array_equal(got[0], image >> (bits - 8))  # type: ignore[index]
        assert np.array_equal(got[0], got[2])  # type: ignore[index]
    assert f"0 … {2**bits - 1} ({bits} bits)" in source.describe()


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_of_16_bits_in_png(tmp_path: Path, bits: int, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 2**bits, (9, 7, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(image))
    dark = image // 64
    (tmp_path / "b.png").write_bytes(png_of_16_bits(dark))
    samples, _ = opened({"name": "folder", "path": str(tmp_path)})
    for got, wanted in zip(samples.load([0, 1]), (image, dark), strict=True):
        first = wanted[..., : 3 if channels > 2 else 1].transpose(2, 0, 1) >> (bits - 8)
        assert np.array_equal(got, np.broadcast_to(first, (3, 9, 7)))


def test_colours_of_16_bits_in_arrays_and_tiff(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 4096, (5, 6, 7, 3)).astype(np.uint16)
    samples, _ = opened(written(tmp_path, "npz", images))
    assert np.array_equal(samples.load([4])[0], images[4].transpose(2, 0, 1) >> 4)
    head = struct.pack("<2sHI", b"II", 42, 8)
    raw = images[0].astype("<u2").tobytes()
    tags = [
        (256, 4, 1, 7),
        (257, 4, 1, 6),
        (258, 3, 3, 134),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 140),
    ]
    tags += [(277, 3, 1, 3), (278, 4, 1, 6), (279, 4, 1, len(raw)), (284, 3, 1, 1)]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    tiff = (head + body).ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + raw
    assert np.array_equal(decode(tiff, Depth(0, 12)), images[0].transpose(2, 0, 1) >> 4)


def test_grey_levels_are_never_of_an_image(tmp_path: Path) -> None:
    images = images_of(12, np.uint16)
    data = written(tmp_path, "tiff", images)
    samples, _ = opened(data)
    assert samples.load([0])[0].max() <= 31  # type: ignore[union-attr]
    some, _ = opened(data, limit=2)
    assert some.depth == Depth(0, 12)  # of the whole data set, whichever of it is used


def test_bytes_beside_wide_pixels_stay(tmp_path: Path) -> None:
    data = written(tmp_path, "tiff", images_of(12, np.uint16))
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (tmp_path / "9.png").write_bytes(encoded(Image.fromarray(grey)))
    samples, _ = opened(data)
    assert np.array_equal(samples.load([6])[0][0], grey)  # type: ignore[index]
    assert samples.depth == Depth(0, 12)


def test_narrow_data_say_nothing_of_a_range(tmp_path: Path) -> None:
    samples, source = opened({"name": "folder", "path": str(image_folder(tmp_path, 4))})
    assert samples.depth is None
    assert "bits" not in source.describe()


def test_the_test_set_is_scaled_as_the_training_set(tmp_path: Path) -> None:
    data = written(tmp_path / "train", "npz", images_of(12, np.uint16))
    dark = written(tmp_path / "test", "npz", images_of(9, np.uint16))
    test = open_samples(Data(**data, eval_path=str(dark["path"])), "eval", 0)
    assert test is not None
    assert test.depth == Depth(0, 12)


def test_the_range_is_the_manifests_when_a_run_goes_on(tmp_path: Path) -> None:
    data, path = (
        written(tmp_path / "data", "png", images_of(10, np.uint16)),
        tmp_path / "run/manifest.parquet",
    )
    opened(data, path, mode="streaming")
    meta = json.loads(pq.read_schema(path).metadata[b"raysurl"])
    assert meta["depth"] == {"low": 0, "bits": 10}
    saved = manifest.restore(opened(data)[0].listing, path)
    assert saved is not None
    assert saved.depth == Depth(0, 10)
    table = pq.read_table(path)
    meta["depth"]["bits"] = 16
    pq.write_table(table.replace_schema_metadata({"raysurl": json.dumps(meta)}), path)
    _, source = opened(data, path, mode="streaming")
    assert source.samples.depth == Depth(0, 16)  # type: ignore[attr-defined]


def test_data_bits_says_it(tmp_path: Path) -> None:
    data = written(tmp_path, "npz", images_of(10, np.uint16))
    samples, source = opened(data, bits=16)
    assert samples.depth == Depth(0, 16)
    assert "by data.bits" in source.describe()
    with pytest.raises(
        InputError, match=r"unreadable.*pixels run from \d+ to 1023.*0 to 255; set data\.bits"
    ):
        opened(data, bits=8)


def test_a_wide_image_that_was_not_looked_at_is_named_and_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysurl.data.dataset._HEADS", 2)
    data = written(image_folder(tmp_path, 20), "png", images_of(12, np.uint16)[3:4])
    (tmp_path / "0.png").rename(tmp_path / "005x.png")
    _, source = opened(data, max_unreadable=0.1)
    assert [Path(lost.name).name for lost in source.skipped] == ["005x.png"]
    assert "set data.bits" in source.skipped[0].reason


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20),
    st.sampled_from([np.int64, np.int32, np.uint16, np.int8, np.uint64]),
)
def test_any_integers_keep_their_order_and_use_the_bytes(values: list[int], dtype: type) -> None:
    about = np.iinfo(dtype)
    array = np.array([min(max(v, about.min), about.max) for v in values], dtype)
    depth = depth_of([array])
    assert depth is not None
    out = depth.to_bytes(array)
    order = np.argsort(array, kind="stable")
    assert (np.diff(out[order].astype(int)) >= 0).all()
    if array.min() >= 0 and array.max() > 0:
        assert out.max() >= 127
    with pytest.raises(DepthError):
        Depth(0, 1).to_bytes(np.array([2], np.int16))


def test_negative_pixels_keep_their_order(tmp_path: Path) -> None:
    scans = np.random.default_rng(0).integers(-1024, 3072, (4, 8, 8)).astype(np.int16)
    scans[0, 0, :2] = -1024, 3071
    samples, _ = opened(written(tmp_path, "npz", scans))
    assert samples.depth == Depth(-1024, 12)
    assert np.array_equal(samples.load([2])[0][0], (scans[2].astype(int) + 1024) >> 4)  # type: ignore[index]


def test_masks_of_two_values_are_seen(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(bool)
    samples, _ = opened(written(tmp_path, "npz", masks))
    assert np.array_equal(samples.load([2])[0][0], masks[2] * 255)  # type: ignore[index]


def test_what_is_no_integer_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="float32"):
        decode(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(DecodeError, match="floating-point"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_few_row_groups_are_looked_at_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [encoded(Image.fromarray(image)) for image in images_of(12, np.uint16, 400)]
    pq.write_table(pa.table({"image": files}), tmp_path / "x.parquet", row_group_size=2)
    monkeypatch.setattr("raysurl.data.dataset._HEADS", 320)
    samples = open_samples(Data(name="parquet", path=str(tmp_path)), "train", 0)
    assert samples is not None
    looked = np.concatenate(list(samples._spread(320)))
    assert len(set(samples.listing.group[looked].tolist())) == 5
    assert looked.tolist() == sorted(set(looked.tolist()))
    assert np.concatenate(list(samples._spread(10**6))).tolist() == list(range(400))
    assert samples.depth == Depth(0, 12)


def hot(images: np.ndarray, count: int) -> np.ndarray:
    """The images with `count` pixels of the third one at the highest value."""
    images = images.copy()
    images[2].flat[:count] = np.iinfo(images.dtype).max
    return images


def test_few_pixels_outside_what_was_measured_are_cut_and_an_image_of_another_range_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were not measured: of 10 samples 2, the first and the last."""
    monkeypatch.setattr("raysurl.data.dataset._MEASURED", 2)
    images = np.random.default_rng(0).integers(0, 4096, (10, 16, 16)).astype(np.uint16)
    samples, source = opened(written(tmp_path / "few", "png", hot(images, 2)))
    assert (samples.depth, source.skipped) == (Depth(0, 12), ())
    assert np.array_equal(samples.load([2])[0][0], np.minimum(hot(images, 2)[2], 4095) >> 4)  # type: ignore[index]
    assert "by the largest in 2 of 10 samples" in source.describe()
    assert (
        "up to 1% of an image outside is cut to its ends, an image with more is left out" in source.describe()
    )
    _, source = opened(written(tmp_path / "many", "png", hot(images, 3)), max_unreadable=0.1)
    assert [Path(lost.name).name for lost in source.skipped] == ["2.png"]
    assert "to 65535 and those of the data set from 0 to 4095" in source.skipped[0].reason


def test_hot_pixels_are_told_of_and_data_bits_cuts_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 4096, (40, 64, 64)).astype(np.uint16)
    data = written(tmp_path, "npz", hot(images, 1))
    samples, _ = opened(data)
    assert samples.depth == Depth(0, 16)  # the data set's own; which pixels are broken is not guessed at
    assert "only 0.00061 % of the pixels are above 4095: data.bits=12" in samples.depth_note
    samples, source = opened(data, bits=12)
    assert not source.skipped
    assert np.array_equal(samples.load([2])[0][0], np.minimum(hot(images, 1)[2], 4095) >> 4)  # type: ignore[index]


@given(
    st.integers(-300, 300), st.integers(1, 12), st.sampled_from([np.int16, np.uint16, np.int64, np.uint64])
)
def test_what_is_cut_is_cut_to_the_nearest_end(low: int, bits: int, dtype: type) -> None:
    array = np.array([0, 1, 7, 100, 250, 30000, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    depth = Depth(low, bits, beyond=1.0)
    wanted = [min(max(int(v), depth.low), depth.high) for v in array]
    assert depth.to_bytes(array).tolist() == depth.to_bytes(np.array(wanted, np.int64)).tolist()


def test_the_range_of_a_run_holds_for_other_data_unless_other_bits_are_given(tmp_path: Path) -> None:
    data = Data(**written(tmp_path, "npz", np.full((4, 8, 8), 9000, np.uint16)))
    for bits, depth in ((None, Depth(0, 12, 1.0)), (12, Depth(0, 12, 1.0)), (14, Depth(0, 14))):
        samples = open_samples(data.model_copy(update={"bits": bits}), "train", 0, depth=Depth(0, 12))
        assert samples is not None
        assert samples.depth == depth
        assert ("from 0 to 9000, and those outside are taken" in samples.depth_note) == (bits != 14)
        assert samples.load([0])[0].max() == (140 if bits == 14 else 255)  # type: ignore[union-attr]
