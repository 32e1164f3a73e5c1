"""Whatever a file holds, reading it ends in data or in one of the named errors: searched for with hypothesis.

`python tests/fuzz.py [seconds=600] [target …]` searches for ten minutes, all targets in turn; it prints what it finds
and then exits 1. tests/test_fuzz.py runs a little of each; a case that failed once is an example there.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_settings import ARGUMENTS, YAMLS, check_arguments, check_yaml
from fuzz_stored import CHECKPOINTS, RUNS, SWEEPS, check_checkpoint, check_run, check_sweep
from fuzzing import CUT, FLIPS, Flips, damaged, is_one_sentence
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from raysurl.data import manifest
from raysurl.data.decode import DecodeError, decode, is_wide, pixels_of_pil
from raysurl.data.depth import Depth
from raysurl.data.names import open_samples
from raysurl.data.pickled import arrays_of_pickle
from raysurl.data.residency import check_unreadable
from raysurl.data.source import open_source
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError
from raysurl.recipe import Data


def read_all(**settings: object) -> None:
    """Open, check and decode everything; the only error is one sentence."""
    try:
        data = Data(**{"max_unreadable": 1.0, **settings})  # type: ignore[arg-type]
        samples = open_samples(data, "train", 0)
        assert samples is not None
        loaded = samples.load(range(len(samples)))
        assert len(loaded) == len(samples)
        assert samples.labels is None or len(samples.labels) == len(samples)
        open_source(samples, data)
        check_unreadable([], len(samples), 0)
    except InputError as error:
        is_one_sentence(error)


# -------------------------------------------------------------------- images

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
)
MODES += ("I;16", "I;16B", "I;16L")
FORMATS = ("PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF", "ICO", "DDS", "PCX")


class ImageCase(NamedTuple):
    mode: str
    form: str
    size: tuple[int, int]
    orientation: int
    frames: int
    clear: bool
    seed: int
    flips: Flips
    cut: int | None


IMAGES = st.builds(
    ImageCase,
    mode=st.sampled_from(MODES),
    form=st.sampled_from(FORMATS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    orientation=st.integers(0, 10),
    frames=st.integers(1, 3),
    clear=st.booleans(),
    seed=st.integers(0, 3),
    flips=FLIPS,
    cut=CUT,
)


def image_of(case: ImageCase) -> Image.Image:
    width, height = case.size
    rng = np.random.default_rng(case.seed)
    try:
        return Image.frombytes(case.mode, case.size, rng.bytes(width * height * 4)[: _bytes(case)])
    except ValueError:  # a mode that cannot be made of bytes
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(case.mode)


def _bytes(case: ImageCase) -> int:
    width, height = case.size
    if case.mode == "1":
        return -(-width // 8) * height
    per = {"I": 4, "F": 4}.get(
        case.mode, 2 if case.mode.startswith("I;16") else len(Image.new(case.mode, (1, 1)).getbands())
    )
    return per * width * height


def check_image(case: ImageCase) -> None:
    image = image_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = pixels_of_pil(image)
            assert pixels.shape[0] in (1, 3)
            assert pixels.shape[1:] == case.size[::-1]
        except DecodeError:
            assert case.mode in ("F", "LAB")
        content = _encoded(image, case)
        if content is None:
            return
        whole = not case.flips and case.cut is None
        content = damaged(content, case.flips, case.cut)
        is_wide(content)
        try:
            out = decode(content)
        except DecodeError as error:
            is_one_sentence(error)
            if whole and case.mode not in ("F", "LAB"):
                raise AssertionError(f"a whole image is not read: {error}") from error
            return
    assert out.dtype == np.uint8
    assert out.ndim == 3
    assert out.shape[0] == 3
    if whole and case.form not in ("ICO",):
        turned = case.orientation in (5, 6, 7, 8) and _keeps_orientation(content)
        assert out.shape[1:] == (case.size if turned else case.size[::-1])
        decode(content, Depth(-(2**40), 42))


def _keeps_orientation(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return image.getexif().get(0x0112) is not None


def _encoded(image: Image.Image, case: ImageCase) -> bytes | None:
    """None where the format knows no such image."""
    exif = Image.Exif()
    if case.orientation:
        exif[0x0112] = case.orientation
    more: dict[str, Any] = {"exif": exif} if case.form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
    if case.frames > 1 and case.form in ("GIF", "PNG", "WEBP", "TIFF"):
        more |= {"save_all": True, "append_images": [image] * (case.frames - 1)}
    if case.clear and case.form in ("PNG", "GIF") and case.mode in ("P", "L", "1"):
        more["transparency"] = 0
    buffer = io.BytesIO()
    try:
        image.save(buffer, case.form, **more)
    except Exception:  # each format has its own words for it
        return None
    return buffer.getvalue()


# -------------------------------------------------------------------- arrays

KINDS = (
    "u1",
    "u2",
    ">u2",
    "i1",
    "i2",
    "i4",
    "u8",
    "i8",
    "f2",
    "f4",
    "f8",
    "c8",
    "?",
    "S3",
    "U2",
    "M8[s]",
    "V4",
)
NAMES = ("images", "x", "labels", "y", "other", "a/b", "café", "x.npy", "")


class ArraysCase(NamedTuple):
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    packed: bool
    alone: bool
    flips: Flips
    cut: int | None


ARRAYS = st.builds(
    ArraysCase,
    arrays=st.dictionaries(
        st.sampled_from(NAMES),
        st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5), max_size=4).map(tuple)),
        min_size=1,
        max_size=4,
    ),
    packed=st.booleans(),
    alone=st.booleans(),
    flips=FLIPS,
    cut=CUT,
)


def check_arrays(case: ArraysCase) -> None:
    rng = np.random.default_rng(0)
    made = {}
    for name, (kind, shape) in case.arrays.items():
        count = int(np.prod(shape, dtype=int))
        dtype = np.dtype(kind)
        if dtype.kind in "SU":
            made[name] = np.resize(np.array(["a", "b", "0"], dtype), shape)
        elif dtype.kind == "b":
            made[name] = rng.integers(0, 2, shape).astype(bool)
        else:
            made[name] = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape)
    buffer = io.BytesIO()
    if case.alone:
        np.save(buffer, next(iter(made.values())))
    else:
        (np.savez_compressed if case.packed else np.savez)(buffer, **made)
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        path = Path(folder) / "x.npz"
        path.write_bytes(damaged(buffer.getvalue(), case.flips, case.cut))
        read_all(name="npz", path=str(path))


# -------------------------------------------------------------------- Parquet

_buffer = io.BytesIO()
Image.new("RGB", (1, 1)).save(_buffer, "PNG")
PNG = _buffer.getvalue()
COLUMNS: dict[str, Callable[[int], Any]] = {
    "binary": lambda n: pa.array([PNG] * n, pa.binary()),
    "large_binary": lambda n: pa.array([PNG] * n, pa.large_binary()),
    "fixed": lambda n: pa.array([PNG] * n, pa.binary(len(PNG))),
    "view": lambda n: pa.array([PNG] * n, pa.binary_view()),
    "struct": lambda n: pa.array(
        [{"bytes": PNG, "path": "x"}] * n, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    ),
    "struct of nulls": lambda n: pa.array([{"bytes": None}] * n, pa.struct([("bytes", pa.binary())])),
    "empty struct": lambda n: pa.array([{}] * n, pa.struct([("path", pa.string())])),
    "nested struct": lambda n: pa.array(
        [{"bytes": {"bytes": PNG}}] * n, pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))])
    ),
    "list of bytes": lambda n: pa.array([[PNG]] * n, pa.list_(pa.binary())),
    "categories": lambda n: pa.array([PNG] * n, pa.binary()).dictionary_encode(),
    "numbers": lambda n: pa.array([float(i) for i in range(n)], pa.float64()),
    "numbers with null": lambda n: pa.array([None] * n, pa.float32()),
    "lists": lambda n: pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32())),
    "ragged": lambda n: pa.array([[1.0] * i for i in range(n)], pa.list_(pa.float64())),
    "fixed lists": lambda n: pa.array([[1, 2, 3]] * n, pa.list_(pa.int64(), 3)),
    "no numbers": lambda n: pa.array([[]] * n, pa.list_(pa.float32(), 0)),
    "bytes as numbers": lambda n: pa.array([list(PNG)] * n, pa.list_(pa.uint8())),
    "nested lists": lambda n: pa.array([[[1.0]]] * n, pa.list_(pa.list_(pa.float32()))),
    "text": lambda n: pa.array(["abc"[i % 3] for i in range(n)], pa.string()),
    "text categories": lambda n: pa.array(["abc"[i % 3] for i in range(n)], pa.string()).dictionary_encode(),
    "large text": lambda n: pa.array([None if i % 3 else "é" for i in range(n)], pa.large_string()),
    "null": lambda n: pa.nulls(n),
    "ints": lambda n: pa.array([10**12 * (i % 3) - 1 for i in range(n)], pa.int64()),
    "bools": lambda n: pa.array([i % 2 == 0 for i in range(n)], pa.bool_()),
    "dates": lambda n: pa.array(list(range(n)), pa.date32()),
    "decimals": lambda n: pa.array(range(n), pa.int64()).cast(pa.decimal128(25, 1)),
    "maps": lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    "infinite": lambda n: pa.array([float("inf")] * n, pa.float64()),
}
COLUMN_NAMES = ("image", "label", "x", "image.bytes", "", "é\n")


class TableCase(NamedTuple):
    files: list[dict[str, str]]
    rows: int
    group: int
    labels: str | None
    flips: Flips
    cut: int | None


TABLES = st.builds(
    TableCase,
    files=st.lists(
        st.dictionaries(
            st.sampled_from(COLUMN_NAMES), st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3
        ),
        min_size=1,
        max_size=2,
    ),
    rows=st.integers(0, 5),
    group=st.integers(1, 3),
    labels=st.sampled_from([None, "none", "x", "label", "image"]),
    flips=FLIPS,
    cut=CUT,
)


def check_tables(case: TableCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for i, columns in enumerate(case.files):
            path = Path(folder) / f"{i}.parquet"
            table = pa.table({name: COLUMNS[kind](case.rows) for name, kind in columns.items()})
            try:
                pq.write_table(table, path, row_group_size=case.group)
            except (pa.ArrowException, NotImplementedError):
                return  # what Parquet does not hold
            path.write_bytes(
                damaged(path.read_bytes(), case.flips if i == 0 else [], case.cut if i == 0 else None)
            )
        read_all(name="parquet", path=folder, labels=case.labels)


# -------------------------------------------------------------------- folders and tables of labels

FILE_NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda n: not {0, 47} & set(n) and n not in (b".", b"..")
)


class FolderCase(NamedTuple):
    names: list[list[bytes]]
    table: bytes
    labels: str | None


FOLDERS = st.builds(
    FolderCase,
    names=st.lists(st.lists(FILE_NAMES, min_size=1, max_size=3), min_size=1, max_size=4),
    table=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.lists(st.sampled_from(["path", "label", "a", "b.png", "1", '"', "é"]), max_size=3).map(
                ",".join
            )
        ).map(lambda lines: "\n".join(lines).encode()),
    ),
    labels=st.sampled_from([None, "folder", "none", "table"]),
)


def check_folders(case: FolderCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for parts in case.names:
            path = Path(folder, "data", *(part.decode(errors="surrogateescape") for part in parts))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(path.name + ".png").write_bytes(PNG)
            except OSError:
                continue  # a file where a folder was to be
        (Path(folder) / "t.csv").write_bytes(case.table)
        (Path(folder, "data").mkdir(exist_ok=True))
        (Path(folder) / "data" / "val_annotations.txt").write_bytes(case.table)
        labels = f"{folder}/t.csv" if case.labels == "table" else case.labels
        read_all(name="folder", path=f"{folder}/data", labels=labels)


# -------------------------------------------------------------------- manifests and pickles

META = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=5),
        st.sampled_from(["streaming", "resident"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


class ManifestCase(NamedTuple):
    meta: dict[str, Any]
    columns: dict[str, str]
    rows: int
    flips: Flips
    cut: int | None


MANIFESTS = st.builds(
    ManifestCase,
    meta=st.dictionaries(st.sampled_from(["mode", "reasons", "depth", "root", "class_names"]), META),
    columns=st.dictionaries(
        st.sampled_from(["path", "row_group", "row", "readable", "bytes", "mtime"]),
        st.sampled_from(sorted(COLUMNS)),
    ),
    rows=st.sampled_from([3, 3, 0, 4]),
    flips=FLIPS,
    cut=CUT,
)


def check_manifest(case: ManifestCase) -> None:
    listing = manifest.Listing.of_files("root", [FileEntry(f"{i}.png", 5, 7) for i in range(3)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        manifest.save(
            listing, path, readable=np.ones(3, bool), mode="resident", reasons={}, depth=Depth(0, 12)
        )
        table = pq.read_table(path)
        meta = {**json.loads(table.schema.metadata[b"raysurl"]), **case.meta}
        for name, kind in case.columns.items():
            if case.rows == 3:
                table = table.set_column(table.column_names.index(name), name, COLUMNS[kind](3))
        if case.rows != 3:
            table = pa.table({name: COLUMNS[kind](case.rows) for name, kind in case.columns.items()})
        try:
            pq.write_table(table.replace_schema_metadata({"raysurl": json.dumps(meta)}), path)
        except (pa.ArrowException, NotImplementedError):
            return
        path.write_bytes(damaged(path.read_bytes(), case.flips, case.cut))
        try:
            saved = manifest.restore(listing, path)
            assert saved is not None
            assert saved.mode in ("resident", "streaming")
            assert len(saved.readable) == 3
            saved.unreadable(listing)
        except InputError as error:
            is_one_sentence(error)


class PickleCase(NamedTuple):
    value: int
    protocol: int
    flips: Flips
    cut: int | None


PICKLED = [np.arange(6.0), {0: [1, 2], 5: []}, {"a": (1, None, 1.5, "é", b"x")}, np.zeros((2, 0), np.int32)]
PICKLES = st.builds(PickleCase, st.integers(0, len(PICKLED) - 1), st.sampled_from([0, 2, 3, 4]), FLIPS, CUT)


def check_pickle(case: PickleCase) -> None:
    content = damaged(pickle.dumps(PICKLED[case.value], protocol=case.protocol), case.flips, case.cut)
    try:
        arrays_of_pickle(content)
    except ValueError as error:
        is_one_sentence(error)


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "images": (IMAGES, check_image),
    "arrays": (ARRAYS, check_arrays),
    "tables": (TABLES, check_tables),
    "folders": (FOLDERS, check_folders),
    "manifests": (MANIFESTS, check_manifest),
    "pickles": (PICKLES, check_pickle),
    "yaml": (YAMLS, check_yaml),
    "arguments": (ARGUMENTS, check_arguments),
    "checkpoints": (CHECKPOINTS, check_checkpoint),
    "runs": (RUNS, check_run),
    "sweeps": (SWEEPS, check_sweep),
}


def search(name: str, seconds: float = math.inf, cases: float = math.inf, start: int | None = None) -> int:
    """Look for a case that fails for so long or so many; returns how many were tried.

    With other random numbers each time, unless it is told where to `start`.
    """
    strategy, check = TARGETS[name]
    tried = 0
    began, at = time.monotonic(), random.randrange(2**32) if start is None else start

    def counted(case: Any) -> None:
        nonlocal tried
        tried += 1
        check(case)

    while time.monotonic() - began < seconds and tried < cases:
        rules = settings(
            max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        seed(at + tried)(rules(given(strategy)(counted)))()
    return tried


def main(arguments: list[str]) -> int:
    seconds = next((float(a.partition("=")[2]) for a in arguments if a.startswith("seconds=")), 600.0)
    names = [a for a in arguments if a in TARGETS] or list(TARGETS)
    failed = False
    for name in names:
        try:
            print(f"{name}: {search(name, seconds / len(names))} cases, no other error", flush=True)
        except Exception as error:
            failed = True
            print(f"{name}: {''.join(traceback.format_exception(error))}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
