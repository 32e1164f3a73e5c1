"""Labels: of any type and any numbers to 0 … C−1, from folders, columns and tables of files, and what is said of it."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import image_folder, random_png

from raysurl.data.dataset import Samples
from raysurl.data.labels import classes_of, number
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.errors import InputError
from raysurl.recipe import Data

B = [random_png(i) for i in range(8)]
L = [0, 1] * 4
T = [str(x) for x in L]


def opened(path: Path, name: str = "folder", split: str = "train", **more: object) -> Samples:
    samples = open_samples(Data(**{"name": name, "path": str(path), **more}), split, 0)  # type: ignore[arg-type]
    assert samples is not None
    return samples


def refused(match: str, path: Path, name: str = "folder", **more: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        opened(path, name, **more)
    assert "\n" not in str(caught.value)


def ids(samples: Samples) -> list[int]:
    assert samples.labels is not None
    return list(samples.labels.tolist())


# -------------------------------------------------------------------- numbers


@given(st.lists(st.one_of(st.integers(-1, 5), st.integers(-1, 2**62)), min_size=1, max_size=30))
def test_numbers_become_0_to_c_and_the_originals_stay(values: list[int]) -> None:
    labels = number([("here", np.array(values))], None, "here")
    there = sorted({v for v in values if v >= 0})
    assert sorted(set(labels.ids.tolist()) - {-1}) == list(range(len(there)))
    samples = Samples(None, None).labelled(labels)  # type: ignore[arg-type]
    assert samples.original_labels().tolist() == values
    if there != list(range(len(there))):
        assert labels.names == tuple(map(str, there))
        assert samples.names_by_value() == {str(v): str(v) for v in there}


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(-1, 12), min_size=1))
def test_a_test_set_is_numbered_as_the_training_set(train: list[int], test: list[int]) -> None:
    of_train = number([("a", np.array(train) * 1000)], None, "a")
    known = classes_of(of_train.ids, of_train.names, of_train.values, of_train.text)
    of_test = number([("b", np.where(np.array(test) < 0, -1, np.array(test) * 1000))], known, "b")
    number_of = dict(zip(train, of_train.ids.tolist(), strict=True))
    new = sorted({v for v in test if v >= 0 and v not in number_of})
    number_of |= {v: len(set(train)) + k for k, v in enumerate(new)} | {-1: -1}
    assert of_test.ids.tolist() == [number_of[v] for v in test]
    assert ("not in the training set" in of_test.note) == bool(new)


def test_labels_with_gaps_in_an_npz(tmp_path: Path) -> None:
    images = np.zeros((6, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([200_000, 0, 2**61, -1, 0, -7]))
    np.savez(tmp_path / "y.npz", images=images[:3], labels=np.array([2**61, 200_000, 5]))
    samples = opened(tmp_path / "x.npz", "npz")
    assert ids(samples) == [1, 0, 2, -1, 0, -1]
    assert samples.class_names == ("0", "200000", str(2**61))
    assert "2 of 6 labels are missing or negative and count as none" in samples.note
    test = opened(tmp_path / "x.npz", "npz", "eval", eval_path=str(tmp_path / "y.npz"))
    assert ids(test) == [2, 1, 3]
    np.savez(tmp_path / "z.npz", images=images, labels=np.array([1.0, np.nan, 7, 7, 1, 1]))
    assert ids(opened(tmp_path / "z.npz", "npz")) == [0, -1, 1, 1, 0, 0]
    np.savez(tmp_path / "b.npz", images=images, labels=np.array([5, 9, 5, 9, 5, 9], ">i4"))
    assert opened(tmp_path / "b.npz", "npz").label_values == (5, 9)


def test_names_and_values_are_in_the_manifest_and_the_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((6, 4, 4), np.uint8), labels=np.array([7, 90, 7, 90, 7, -1]))
    samples, path = opened(tmp_path / "x.npz", "npz"), tmp_path / "run/manifest.parquet"
    source = open_source(samples, Data(name="npz", path=str(tmp_path / "x.npz")), manifest_path=path)
    assert source.class_names == ("7", "90")
    assert source.label_values == (7, 90)
    meta = json.loads(pq.read_schema(path).metadata[b"raysurl"])
    assert (meta["class_names"], meta["label_values"]) == (["7", "90"], [7, 90])


def test_hugging_face_names_follow_their_numbers(tmp_path: Path) -> None:
    names = {
        "huggingface": json.dumps({"info": {"features": {"label": {"names": ["ant", "bee", "cat", "dog"]}}}})
    }
    table = pa.table({"image": B, "label": [3, 1] * 4}).replace_schema_metadata(names)
    pq.write_table(table, tmp_path / "a.parquet")
    samples = opened(tmp_path, "parquet")
    assert samples.class_names == ("bee", "dog")
    assert ids(samples) == [1, 0] * 4


# -------------------------------------------------------------------- Parquet columns

WHOLE = {
    "int8": pa.array(L, pa.int8()),
    "int32": pa.array(L, pa.int32()),
    "int64": pa.array(L),
    "uint64": pa.array(L, pa.uint64()),
    "bool": pa.array([bool(x) for x in L]),
    "float with a null": pa.array([None, *map(float, L[1:])]),
    "float with a NaN": pa.array([float("nan"), *map(float, L[1:])]),
    "null": pa.nulls(8),
    "categories of numbers": pa.array(L).dictionary_encode(),
    "decimal": pa.array(L).cast(pa.decimal128(20, 0)),
}
TEXT = {
    "string": pa.array(T),
    "large_string": pa.array(T, pa.large_string()),
    "string_view": pa.array(T, pa.string_view()),
    "category": pa.array(T).dictionary_encode(),
    "category of large_string": pa.array(T, pa.large_string()).dictionary_encode(),
    "binary": pa.array([t.encode() for t in T]),
    "null": pa.nulls(8),
}


@pytest.mark.parametrize("kinds", [WHOLE, TEXT], ids=["whole", "text"])
def test_label_columns_of_one_kind_may_differ_in_type_in_any_order(tmp_path: Path, kinds) -> None:
    for first in kinds:
        for second in kinds:
            for name, kind in (("0", first), ("1", second)):
                pq.write_table(pa.table({"image": B, "label": kinds[kind]}), tmp_path / f"{name}.parquet")
            samples = opened(tmp_path, "parquet")
            for kind, part in ((first, ids(samples)[:8]), (second, ids(samples)[8:])):
                expected = (
                    [-1] * 8 if kind == "null" else [-1 if "NaN" in kind or "a null" in kind else 0, *L[1:]]
                )
                assert part == expected, (first, second)


def test_labels_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    for labels in (
        pa.array([[1]] * 8),
        pa.array([0.5] * 8),
        pa.array([b"\xff\xfe"] * 8),
        pa.array([{"a": 1}] * 8),
        pa.array([10**6] * 8, pa.timestamp("s")),
        pa.array([2**64 - 1] * 8, pa.uint64()),
        pa.array(["1.5"] * 8).cast(pa.decimal128(20, 2)),
    ):
        pq.write_table(pa.table({"image": B, "label": labels}), tmp_path / "a.parquet")
        refused("labels of type .*; valid are integers or text", tmp_path, "parquet")
    refused("labels of type decimal.*, some of them no whole numbers of 64 bits; valid", tmp_path, "parquet")
    for order in ((L, T), (T, L)):
        for i, labels in enumerate(order):
            pq.write_table(pa.table({"image": B, "label": labels}), tmp_path / f"{'ab'[i]}.parquet")
        refused("the labels of .* are text and those of .* numbers", tmp_path, "parquet")
    pq.write_table(pa.table({"image": B}), tmp_path / "b.parquet")
    refused(r"only some of its files have labels, b\.parquet has none", tmp_path, "parquet")


def test_image_columns_may_differ_in_type_in_any_order(tmp_path: Path) -> None:
    kinds = {
        "binary": pa.array(B, pa.binary()),
        "large_binary": pa.array(B, pa.large_binary()),
        "binary_view": pa.array(B, pa.binary_view()),
        "categories": pa.array(B).dictionary_encode(),
        "struct": pa.array([{"bytes": b, "path": None} for b in B]),
        "large struct": pa.array(
            [{"path": "x", "bytes": b} for b in B],
            pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        ),
    }
    for first in kinds:
        for second in kinds:
            for name, kind in (("a", first), ("b", second)):
                pq.write_table(pa.table({"image": kinds[kind]}), tmp_path / f"{name}.parquet")
            samples = opened(tmp_path, "parquet")
            assert not samples.unreadable(range(16)), (first, second)
            assert np.array_equal(samples.load([3])[0], samples.load([11])[0])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_file_whose_images_are_all_missing_is_counted_and_named(tmp_path: Path, order: str) -> None:
    for name, column in zip(order, (pa.nulls(8), pa.array(B)), strict=True):
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
    lost = opened(tmp_path, "parquet").unreadable(range(16))
    assert {Path(sample.name.split(" row ")[0]).name for sample in lost} == {f"{order[0]}.parquet"}
    assert [sample.reason for sample in lost] == ["it holds no bytes"] * 8


def test_the_folders_of_a_flat_folder_cannot_be_its_labels(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(B[i])
    refused("data.labels=folder: all images lie directly in", tmp_path, "folder", labels="folder")
    assert opened(tmp_path, "folder").labels is None


def test_image_columns_that_hold_none_are_one_sentence(tmp_path: Path) -> None:
    for column, says in (
        (pa.array([[b] for b in B]), "holds no encoded images"),
        (pa.array([list(b) for b in B], pa.list_(pa.uint8())), "as lists of numbers; store them as binary"),
        (
            pa.array([[x - 256 if x > 127 else x for x in b] for b in B], pa.list_(pa.int8())),
            "as lists of numbers",
        ),
        (pa.array(["a.png"] * 8), "holds no encoded images"),
        (pa.array([{"path": "a.png"}] * 8), "holds no encoded images"),
        (pa.array([[]] * 8, pa.list_(pa.float32(), 0)), "cannot be read|have 0 to 0 numbers"),
        (pa.array([[]] * 8, pa.list_(pa.float32())), "have 0 to 0 numbers"),
        (pa.array([[1.0]] * 7 + [[1.0, 2.0]]), "have 1 to 2 numbers"),
    ):
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        refused(says, tmp_path, "parquet")
    twice = pa.Table.from_arrays([pa.array(B), pa.array(B)], names=["image", "image"])
    pq.write_table(twice, tmp_path / "a.parquet")
    refused("two columns named 'image'", tmp_path, "parquet")


def test_partitions_say_labels(tmp_path: Path) -> None:
    for value in ("a b", "c%2Fd", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"year=2024/label={value}").mkdir(parents=True)
        pq.write_table(pa.table({"image": B[:2]}), tmp_path / f"year=2024/label={value}/x.parquet")
    samples = opened(tmp_path, "parquet")
    assert samples.class_names == ("a b", "c/d")
    assert ids(samples) == [-1, -1, 0, 0, 1, 1]
    years = opened(tmp_path, "parquet", labels="year")
    assert (ids(years), years.class_names) == ([0] * 6, ("2024",))
    numbers = tmp_path / "numbers"
    for value in (10, 7):
        (numbers / f"label={value}").mkdir(parents=True)
        pq.write_table(pa.table({"image": B[:1]}), numbers / f"label={value}/x.parquet")
    assert opened(numbers, "parquet").label_values == (7, 10)
    image_folder(tmp_path / "pictures", 4, classes=2)
    for c in range(2):
        (tmp_path / f"pictures/class{c}").rename(tmp_path / f"pictures/label=n{c}")
    assert opened(tmp_path / "pictures").class_names == ("n0", "n1")


def test_the_setting_names_a_column_an_array_or_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": B, "label": L, "coarse": ["x", "y"] * 4}), tmp_path / "a.parquet")
    assert opened(tmp_path, "parquet", labels="coarse").class_names == ("x", "y")
    assert opened(tmp_path, "parquet", labels="none").labels is None
    refused(
        "no column 'fine'; set data.labels to one of image, label, coarse", tmp_path, "parquet", labels="fine"
    )
    refused("is for data.name=folder", tmp_path, "parquet", labels="folder")
    np.savez(
        tmp_path / "x.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4), fine=np.arange(4) % 2
    )
    assert ids(opened(tmp_path / "x.npz", "npz", labels="fine")) == [0, 1, 0, 1]
    assert opened(tmp_path / "x.npz", "npz", labels="none").labels is None
    refused(
        "no array 'z'; set data.labels to one of images, labels, fine", tmp_path / "x.npz", "npz", labels="z"
    )
    assert opened(tmp_path, "digits", labels="none").labels is None
    refused("has its own labels; valid is none", tmp_path, "digits", labels="coarse")
    pq.write_table(pa.table({"a": [1.0] * 8, "b": [2.0] * 8, "label": L}), tmp_path / "a.parquet")
    vectors = opened(tmp_path, "parquet", labels="none")
    assert vectors.width() == 2


# -------------------------------------------------------------------- folders


def folders(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(random_png(i))
    return root


def test_loose_and_nested_images_have_no_labels_unless_asked(tmp_path: Path) -> None:
    root = folders(tmp_path, "a.png", "x/b.png", "y/c.png")
    guess = opened(root)
    assert guess.labels is None
    assert "images lie both directly in it (a.png) and in folders; data.labels=folder" in guess.note
    asked = opened(root, labels="folder")
    assert ids(asked) == [-1, 0, 1]
    assert "1 images outside of them have none" in asked.note
    assert opened(root, labels="none").labels is None


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["p1/A01/a.png", "p1/H12/b.png", "p2/A01/a.png"], "look like wells of plates"),
        (["plate_1/a.png", "plate_2/b.png"], "look like plates"),
        (["A01/a.png", "B07/b.png"], "look like wells"),
        (["photos/a.png", "photos/b.png"], "all images lie in one folder, photos"),
        (["photos/cat/a.png", "photos/dog/b.png"], "its 2 folders with data.path=.*/photos"),
    ],
)
def test_folders_that_look_like_no_classes_are_none_and_that_is_said(
    tmp_path: Path, names: list[str], says: str
) -> None:
    root = folders(tmp_path, *names)
    samples = opened(root)
    assert samples.labels is None
    assert "data.labels=folder" in samples.note
    assert re.search(says, samples.note)
    assert ids(opened(root, labels="folder"))
    source = open_source(samples, Data(name="folder", path=str(root)))
    assert "no labels" in source.describe()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["c0/a.png", "c1/b.png"], "the 2 top folders; data.labels=none"),
        (["cat/a.png", "dog/b.png", "test/c.png"], "test look like splits"),
        (["cat/a.png", "dog/b.png", "unlabeled/c.png"], "images in unlabeled have none"),
        (
            ["cat/1/a.png", "dog/1/b.png", "dog/2/c.png", "cat/2/d.png"],
            "the same folders .1, 2. lie in several",
        ),
    ],
)
def test_folders_that_are_classes_are_said_to_be(tmp_path: Path, names: list[str], said: str) -> None:
    samples = opened(folders(tmp_path, *names))
    assert samples.labels is not None
    assert re.search(said, samples.note)
    assert "unlabeled" not in (samples.class_names or ())
    assert (samples.labels < 0).sum() == sum("unlabeled" in name for name in names)


@pytest.mark.parametrize(
    ("tops", "hint"),
    [
        (["train", "val"], "data.path=.*/train data.eval_path=.*/val"),
        (["Train", "Test", "unlabeled"], "data.path=.*/Train data.eval_path=.*/Test"),
        (["train"], "data.path=.*/train"),
        (["test", "val"], "data.path=.*/test"),
        (["train", "unlabeled"], "data.path=.*/train"),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, tops: list[str], hint: str) -> None:
    root = folders(tmp_path, *(f"{top}/{c}/x.png" for top in tops for c in "ab"))
    refused(f"holds the splits .*, not classes; give {hint}, or data.labels=none", root)
    assert len(opened(root, labels="none")) == 2 * len(tops)


def test_empty_folders_do_not_shift_the_classes_of_the_test_set(tmp_path: Path) -> None:
    folders(tmp_path, "train/b/x.png", "train/c/x.png", "test/c/y.png", "test/b/z.png")
    (tmp_path / "train/a").mkdir()
    test = opened(tmp_path / "train", split="eval", eval_path=str(tmp_path / "test"))
    assert (ids(test), test.class_names) == ([0, 1], ("b", "c"))


# -------------------------------------------------------------------- tables of files

TABLES = {
    "headings": "path,label\nx/a.png,cat\nx/b.png,dog\n",
    "a byte order mark": "\ufeffpath,label\nx/a.png,cat\nx/b.png,dog\n",
    "a mark and no headings": "\ufeffx/a.png,cat\nx/b.png,dog\n",
    "other headings, order and quotes": 'size,class,file_name\r\n3,"cat",./x/a.png\r\n4,dog,"x/b.png"\r\n',
    "semicolons and file names": "image;target\na.png;cat\nb.png;dog\nelse.png;cow\n",
    "tabs and stems": "image_id\tlabel\na\tcat\nb\tdog\n",
    "backslashes": "path,label\nx\\a.png,cat\nx\\b.png,dog\n",
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_of_files_and_labels(tmp_path: Path, case: str, encoding: str) -> None:
    root = folders(tmp_path / "data", "x/a.png", "x/b.png", "c.png")
    text = TABLES[case].removeprefix("\ufeff") if encoding == "utf-16" else TABLES[case]
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    samples = opened(root, labels=str(tmp_path / "t.csv"))
    assert samples.class_names == ("cat", "dog")
    assert ids(samples) == [-1, 0, 1]
    assert "1 images are not in it and have none" in samples.note
    assert ("1 of its rows name no image here" in samples.note) == ("else" in text)


def test_tables_that_say_nothing_are_one_sentence(tmp_path: Path) -> None:
    root, table = folders(tmp_path / "data", "x/a.png", "y/a.png"), tmp_path / "t.csv"
    for text, says in (
        ("", "begins with nothing"),
        ("one column\na\n", "must have the columns path and label"),
        ("path,label\nz.png,cat\n", "names none of the images, the first of which is x/a.png"),
        ("path,label\na.png,cat\n", "names none of the images"),
        ("path,label\nx/a.png,cat\nx/a.png,dog\n", "gives x/a.png two labels, cat and dog"),
        ("path,label\nx/a.png\n", "has no label"),
        ('path,label\n"' + "x" * 200_000, "no table of text"),
    ):
        table.write_text(text)
        refused(says, root, labels=str(table))
    refused("cannot be opened", root, labels=str(tmp_path / "none.csv"))
    refused("a folder of images has no columns", root, labels="coarse")
    table.write_text("path,label\nx/a.png,3000\ny/a.png,5\n")
    assert opened(root, labels=str(table)).label_values == (5, 3000)


def test_annotations_with_a_mark_and_in_another_encoding(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", 4, classes=2)
    (tmp_path / "train/class1").rename(str(tmp_path / "train/caf\udce9"))
    image_folder(tmp_path / "val/images", 2)
    notes = tmp_path / "val/val_annotations.txt"
    for content in (
        b"\xef\xbb\xbf000.png\tcaf\xe9\t0\r\n001.png\tclass0\t0\r\n",
        b"000.png\tcaf\xe9\n001.png\tclass0",
    ):
        notes.write_bytes(content)
        test = opened(tmp_path / "train", split="eval", eval_path=str(tmp_path / "val"))
        assert ids(test) == [0, 1]
        assert test.class_names == ("caf\\xe9", "class0")


def test_avif_where_pillow_can(tmp_path: Path) -> None:
    from PIL import Image, features

    if not features.check("avif"):
        pytest.skip("this Pillow cannot")
    Image.new("RGB", (16, 16), (200, 30, 40)).save(tmp_path / "a.avif")
    assert opened(tmp_path).load([0])[0].shape == (3, 16, 16)  # type: ignore[union-attr]
