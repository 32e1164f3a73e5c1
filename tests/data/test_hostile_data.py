"""Files made to harm, or damaged: one sentence each, nothing run, and nothing large read."""

import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from citations import citation_files
from image_files import image_folder

from raysurl.data import archives, planetoid
from raysurl.data.names import open_samples
from raysurl.data.pickled import arrays_of_pickle
from raysurl.errors import InputError
from raysurl.methods.genurl import graphs
from raysurl.recipe import Data


def refused(match: str, **data: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_samples(Data(**data), "train", 0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def same(a: object, b: object) -> bool:
    if scipy.sparse.issparse(a):
        return scipy.sparse.issparse(b) and a.shape == b.shape and not (a != b).nnz and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(b) is (dict if isinstance(a, defaultdict) else type(a)) and a == b


# -------------------------------------------------------------------- pickles

VALUES = [
    np.arange(6, dtype="<f4").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
    np.zeros((0, 4), np.uint8),
    np.array([True, False]),
    scipy.sparse.csr_matrix(np.eye(3, 5, dtype=np.float32)),
    scipy.sparse.csr_matrix((2, 7), dtype=np.int32),
    {0: [1, 2], 7: []},
    defaultdict(list, {1: [2**40], -3: [5]}),
    {"a": (1, None, True, 1.5, "text")},
]


@pytest.mark.parametrize(
    "value", VALUES, ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}"
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_pickles_are_read_as_pickle_reads_them(value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol=protocol)
    assert same(pickle.loads(content), arrays_of_pickle(content))


class Evil:
    def __init__(self, *made: object) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return self.made


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


OBJECTS = global_("numpy", "dtype") + b"X\x01\0\0\0O\x85R"
POINTER = b"\x80\x03" + global_("numpy", "ndarray") + b"(K\x01\x85" + OBJECTS + b"C\x08AAAAAAAAtR."
RECONSTRUCT = (
    global_("numpy.core.multiarray", "_reconstruct") + global_("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"
)
HOSTILE = {
    "os.system": pickle.dumps(Evil(os.system, ("touch owned",)), protocol=2),
    "eval": pickle.dumps(Evil(eval, ("1",)), protocol=4),
    "instance": b"(S'touch owned'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch owned'\no.",
    "extension": b"\x82\x01.",
    "persistent": b"Pname\n.",
    "array at a pointer": POINTER,
    "list of it": b"\x80\x03c__builtin__\nlist\n" + POINTER[2:-1] + b"\x85R.",
    "array of objects": pickle.dumps(np.array([[1], "a"], dtype=object), protocol=2),
    "array of texts": pickle.dumps(np.array(["a"]), protocol=2),
    "array of records": pickle.dumps(np.zeros(2, [("a", "<i4")]), protocol=2),
    "state of a class": global_("numpy", "ndarray") + b"}X\x01\0\0\0aK\x01sb.",
    "state of a function": global_("numpy.core.multiarray", "_reconstruct") + b"}X\x01\0\0\0aK\x01sb.",
    "state of a list": b"]}X\x01\0\0\0aK\x01sb.",
    "state twice": b"\x80\x03" + RECONSTRUCT + b"(K\x01K\0\x85Ntb" + b"(K\x01tb.",
    "array that is longer than its bytes": b"\x80\x03"
    + RECONSTRUCT
    + b"(K\x01J\xff\xff\xff\x7f\x85"
    + global_("numpy", "dtype")
    + b"X\x02\0\0\0f8K\0K\x01\x87RN\x89C\x08AAAAAAAAtb.",
    "array without state": b"\x80\x03" + RECONSTRUCT + b".",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an empty stack": b".",
    "a mark that is missing": b"\x80\x02t.",
    "memo that is empty": b"h\x05.",
    "unhashable key": b"}]K\x01s.",
    "into a number": b"K\x01K\x02a.",
    "text": b"<html>log in first</html>",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_one_sentence_and_run_nothing(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(vars(np.ndarray)), set(sys.modules)
    try:
        found = arrays_of_pickle(HOSTILE[case])
    except ValueError:
        found = None
    assert found is None or type(found) in (dict, list, int)
    for part in ("graph", "allx", "ally", "y"):
        data = citation_files(tmp_path / part)
        (tmp_path / part / f"Cora/raw/ind.cora.{part}").write_bytes(HOSTILE[case])
        refused(r"raw file", **data)
    assert not (tmp_path / "owned").exists()
    assert dict(vars(np.ndarray)) == before[0]


def matrix(**parts: object) -> scipy.sparse.csr_matrix:
    """Six rows of three columns, with a damaged part."""
    made = scipy.sparse.csr_matrix(np.arange(18, dtype=np.float32).reshape(6, 3))
    made.__dict__.update(parts)
    return made


GOOD = matrix()
DAMAGED = {
    "a flipped bit": {"indices": np.where(np.arange(17) == 5, GOOD.indices ^ (1 << 24), GOOD.indices)},
    "a column outside": {"indices": np.where(np.arange(17) == 5, 3, GOOD.indices).astype(np.int32)},
    "a negative column": {"indices": np.where(np.arange(17) == 5, -1, GOOD.indices).astype(np.int32)},
    "rows that go back": {"indptr": np.array([0, 2, 8, 5, 11, 14, 17], np.int32)},
    "rows that begin late": {"indptr": np.array([1, 2, 5, 8, 11, 14, 17], np.int32)},
    "rows that end late": {"indptr": np.array([0, 2, 5, 8, 11, 14, 18], np.int32)},
    "too few rows": {"indptr": GOOD.indptr[:-1]},
    "indices that are none": {"indices": GOOD.indices.astype(np.float32)},
    "more values than indices": {"data": np.ones(18, np.float32)},
    "values in two axes": {"data": GOOD.data[None]},
    "a shape of one": {"_shape": (6,)},
    "a shape of text": {"_shape": ("6", 3)},
    "a negative shape": {"_shape": (6, -3)},
    "a vast shape": {"_shape": (6, 10**12)},
    "values that are not finite": {"data": np.where(np.arange(17) == 3, np.nan, GOOD.data)},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_sparse_matrices_are_checked_fully(tmp_path: Path, case: str) -> None:
    data = citation_files(tmp_path)
    content = pickle.dumps(matrix(**DAMAGED[case]), protocol=3)
    (tmp_path / "Cora/raw/ind.cora.allx").write_bytes(content)
    refused("raw file", **data)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("graph", {0: [10**9]}),
        ("graph", {-1: [0]}),
        ("graph", {0: [2**70]}),
        ("graph", {0: 5}),
        ("graph", {0: ["1"]}),
        ("graph", [1, 2]),
        ("graph", {0: [1.5]}),
        ("graph", {0: [True]}),
        ("test.index", b"6\n7\n1000000000000\n"),
        ("test.index", b"6\n7\n7\n"),
        ("test.index", b"6\n7\n"),
        ("test.index", b"6\n7\n-1\n"),
        ("test.index", b"6\n7\nnine\n"),
        ("test.index", b"\xff"),
        ("test.index", b""),
        ("ally", np.ones(6)),
        ("ally", np.ones((5, 2))),
        ("y", np.ones((7, 2))),
        ("ty", np.ones((3, 3))),
        ("tx", scipy.sparse.csr_matrix(np.ones((3, 4), np.float32))),
        ("allx", np.ones((6, 3))),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, part: str, value: object) -> None:
    data = citation_files(tmp_path)
    content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
    (tmp_path / f"Cora/raw/ind.cora.{part}").write_bytes(content)
    refused("raw file|raw graph", **data)


def test_a_small_pickle_of_many_neighbours_is_refused(tmp_path: Path) -> None:
    shared = list(range(100_000))
    content = pickle.dumps(
        dict.fromkeys(range(10000), shared), protocol=2
    )  # 10⁹ neighbours in half a megabyte
    path = tmp_path / "ind.x.graph"
    path.write_bytes(content)
    with pytest.raises(InputError, match="1,000,000,000 neighbours"):
        planetoid.edges_of(str(path))


# -------------------------------------------------------------------- arrays


def npy_head(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(path: Path, blocks: int, shape: tuple[int, ...], name: str = "images.npy") -> str:
    """An archive of an array that says `shape` and holds blocks of 2**20 zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        file.write(npy_head(shape))
        for _ in range(blocks):
            file.write(bytes(2**20))
    return str(path)


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "load", lambda *args, **more: pytest.fail("it was read"))
    monkeypatch.setattr(archives, "SMALL_BYTES", 2**22)
    bomb = zipped(tmp_path / "bomb.npz", 16, (2**18, 8, 8))
    refused(r"unpacks from 0\.0 MB to 0\.0 GB, as no images do", name="npz", path=bomb)
    edges = zipped(tmp_path / "edges.npz", 16, (2**20, 16), "edges.npy")
    with pytest.raises(InputError, match="as no images do"):
        graphs.read_edges(edges, 10, "path", lengths=False)
    monkeypatch.setattr(archives, "free_memory", lambda: 2**20)
    refused("more than memory holds", name="npz", path=bomb)


def test_arrays_that_claim_more_than_there_is(tmp_path: Path) -> None:
    refused(
        r"claims uint8 of shape \(1000000000000, 8, 8\).* and holds 1,048,576",
        name="npz",
        path=zipped(tmp_path / "a.npz", 1, (10**12, 8, 8)),
    )
    (tmp_path / "a.npy").write_bytes(npy_head((10**12, 8, 8)) + bytes(64))
    refused("64,000,000,000,000 bytes, and holds 64", name="npz", path=str(tmp_path / "a.npy"))
    (tmp_path / "b.npy").write_bytes(npy_head((-1, 8, 8)) + bytes(64))
    refused("not a .npy or .npz", name="npz", path=str(tmp_path / "b.npy"))
    np.save(tmp_path / "o.npy", np.array([[object()]]), allow_pickle=True)
    refused("holds Python objects", name="npz", path=str(tmp_path / "o.npy"))


def test_a_well_packed_small_archive_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", 1, (2**14, 8, 8))
    assert len(open_samples(Data(name="npz", path=path), "train", 0) or []) == 2**14


# -------------------------------------------------------------------- Parquet


def test_a_matrix_of_fewer_rows_than_its_head_says_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1.0] * 9, "b": [2.0] * 9}), tmp_path / "x.parquet")
    monkeypatch.setattr("raysurl.data.tables.load_once", lambda origin: np.zeros((5, 2), np.float32))
    refused("claims 9 rows and holds 5; it is damaged", name="parquet", path=str(tmp_path))


def test_names_and_labels_in_parquet_that_are_no_utf8(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"?"] * 3, "label": ["zq", "zq", "b"]}), buffer, use_dictionary=False)
    for was, now in ((b"zq", b"\xff\xff"), (b"label", b"l\xffbel"), (b"image", b"im\xffge")):
        (tmp_path / "x.parquet").write_bytes(buffer.getvalue().replace(was, now))
        refused("labels of type|Parquet file", name="parquet", path=str(tmp_path))


# -------------------------------------------------------------------- images


def test_an_image_that_claims_billions_of_pixels_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path, 9)
    small = bytearray((tmp_path / "000.png").read_bytes())
    small[16:24] = struct.pack(">II", 60_000, 60_000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    (tmp_path / "bomb.png").write_bytes(bytes(small))
    samples = open_samples(Data(name="folder", path=str(tmp_path)), "train", 0)
    assert samples is not None
    assert [(Path(lost.name).name, lost.reason[:26]) for lost in samples.unreadable(range(10))] == [
        ("bomb.png", "Image size (3600000000 pix")
    ]


def test_the_pickles_of_these_tests_are_what_they_say() -> None:
    assert "O" in {argument for _, argument, _ in pickletools.genops(POINTER)}
