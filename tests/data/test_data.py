import pickle
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import SHARED, image_folder, needs_shared, parquet_file, pixels_of, random_png

from raysurl.data import manifest
from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.recipe import Data


def open_train(seed: int = 0, **settings: object) -> Samples:
    samples = open_samples(Data(**{"name": "digits", **settings}), "train", seed)
    assert samples is not None
    return samples


def refused(match: str, split: str = "train", **settings: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_samples(Data(**settings), split, 0)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------- digits


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    train, test = open_train(), open_samples(Data(name="digits"), "eval", 5)
    assert test is not None
    assert (len(train), len(test)) == (1437, 360)
    assert test.labels is not None
    assert np.bincount(test.labels).min() >= 34
    rows = {*train.listing.row.tolist(), *test.listing.row.tolist()}
    assert rows == set(range(1797))
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    _, of_test = train_test_split(numbers, test_size=0.2, random_state=0, stratify=digits.target)
    assert test.listing.row.tolist() == sorted(of_test)
    expected = np.round(digits.images[train.listing.row] * 255 / 16)
    assert (np.stack(train.load(range(len(train)))) == expected[:, None]).all()
    assert train.labels is not None
    assert (train.labels == digits.target[train.listing.row]).all()


def test_limit_is_a_seeded_choice_of_the_training_split() -> None:
    whole = open_train()
    some, again, other = (open_train(seed, limit=100) for seed in (1, 1, 2))
    assert some.listing.row.tolist() == again.listing.row.tolist() != other.listing.row.tolist()
    assert len(some) == 100
    assert len(open_train(limit=10**6)) == len(whole)
    assert len(open_samples(Data(name="digits", limit=100), "eval", 1) or []) == 360
    where = {row: i for i, row in enumerate(whole.listing.row.tolist())}
    for i in (0, 50, 99):
        assert (some.load([i])[0] == whole.load([where[int(some.listing.row[i])]])[0]).all()


# -------------------------------------------------------------------- folders


def test_flat_folder_is_sorted_and_unlabelled(tmp_path: Path) -> None:
    image_folder(tmp_path, 5)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    samples = open_train(name="folder", path=str(tmp_path))
    assert [Path(samples.name_of(i)).name for i in range(5)] == [f"{i:03}.png" for i in range(5)]
    assert samples.labels is None
    assert "1 files" in samples.note
    for i in (4, 0):
        assert (samples.load([i])[0] == pixels_of(random_png(i))).all()


def test_class_folders_give_labels_and_the_test_set_uses_the_same_numbers(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", 9, classes=3)
    image_folder(tmp_path / "test/class2/deep", 2)
    settings = {"name": "folder", "path": str(tmp_path / "train"), "eval_path": str(tmp_path / "test")}
    train, test = open_train(**settings), open_samples(Data(**settings), "eval", 0)
    assert train.class_names == ("class0", "class1", "class2")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test is not None
    assert test.labels is not None
    assert test.labels.tolist() == [2, 2]
    assert open_samples(Data(**{**settings, "eval_path": None}), "eval", 0) is None


def test_tiny_imagenet_test_folder_takes_its_labels_from_the_annotations(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", 6, classes=2)
    image_folder(tmp_path / "val/images", 3)
    lines = ["000.png\tclass1\t0\t0\t9\t9", "001.png\tclass0\t0\t0\t9\t9", "002.png\tclass1\t0\t0\t9\t9"]
    (tmp_path / "val/val_annotations.txt").write_text("\n".join(lines))
    data = Data(name="folder", path=str(tmp_path / "train"), eval_path=str(tmp_path / "val"))
    test = open_samples(data, "eval", 0)
    assert test is not None
    assert test.labels is not None
    assert test.labels.tolist() == [1, 0, 1]


def test_unreadable_files_keep_their_index_and_are_named(tmp_path: Path) -> None:
    image_folder(tmp_path, 6, bad=1)
    (tmp_path / "003.png").write_bytes(b"")
    samples = open_train(name="folder", path=str(tmp_path))
    (tmp_path / "004.png").unlink()
    loaded = samples.load(range(6))
    lost = [sample for sample in loaded if isinstance(sample, Unreadable)]
    assert [sample.index for sample in lost] == [0, 3, 4]
    assert [Path(sample.name).name for sample in lost] == ["000.png", "003.png", "004.png"]
    assert "not an image" in lost[0].reason
    assert "empty" in lost[1].reason
    assert "cannot be opened" in lost[2].reason
    assert samples.unreadable(range(6)) == lost
    assert [type(sample) for sample in samples.load([5, 4, 5])] == [np.ndarray, Unreadable, np.ndarray]
    assert (loaded[5] == pixels_of(random_png(5))).all()


def test_bad_folders(tmp_path: Path) -> None:
    refused("does not exist", name="folder", path=str(tmp_path / "nothing"))
    refused("no image files", name="folder", path=str(tmp_path))
    file = tmp_path / "one.parquet"
    file.write_bytes(b"x")
    refused("data.name=parquet", name="folder", path=str(file))
    refused("needs data.path", name="folder")
    image_folder(tmp_path / "split/train", 2, classes=2)
    image_folder(tmp_path / "split/val", 2, classes=2)
    refused(
        "splits train, val.*data.path=.*/train data.eval_path=.*/val",
        name="folder",
        path=str(tmp_path / "split"),
    )
    image_folder(tmp_path / "other/new", 2)
    paths = {"path": str(tmp_path / "split/train"), "eval_path": str(tmp_path / "other")}
    refused("class 'new'", split="eval", name="folder", **paths)
    refused("cannot be opened", name="folder", path="nosuchscheme://bucket/folder")


def test_a_folder_of_files_that_are_no_images_is_refused_by_the_probe(tmp_path: Path) -> None:
    image_folder(tmp_path, 4, bad=4)
    samples = open_train(name="folder", path=str(tmp_path))
    with pytest.raises(InputError, match=r"none of 4 probed samples.*000\.png"):
        samples.nbytes_estimate()


def test_uris_of_pyarrow_and_of_fsspec(tmp_path: Path) -> None:
    image_folder(tmp_path / "files", 3, classes=2)
    parquet_file(tmp_path / "files.parquet", 10)
    memory = fsspec.filesystem("memory")
    bucket = f"/bucket-{uuid.uuid4().hex}"
    memory.put(str(tmp_path / "files"), f"{bucket}/files", recursive=True)
    memory.put(str(tmp_path / "files.parquet"), f"{bucket}/set/files.parquet")
    local = open_train(name="folder", path=str(tmp_path / "files"))
    for uri in (f"file://{tmp_path}/files", f"memory:/{bucket}/files"):
        samples = open_train(name="folder", path=uri)
        assert samples.labels is not None
        assert samples.labels.tolist() == [0, 0, 1]
        assert samples.name_of(2).startswith(uri)
        for a, b in zip(samples.load(range(3)), local.load(range(3)), strict=True):
            assert (a == b).all()
    rows = open_train(name="parquet", path=str(tmp_path / "files.parquet"))
    for uri in (
        f"memory:/{bucket}/set",
        f"memory:/{bucket}/set/*.parquet",
        f"file://{tmp_path}/files.parquet",
    ):
        samples = open_train(name="parquet", path=uri)
        assert len(samples) == 10
        assert (samples.load([7])[0] == rows.load([7])[0]).all()


# -------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_rows_in_any_order_across_files_and_row_groups(tmp_path: Path, struct: bool) -> None:
    parquet_file(tmp_path / "b.parquet", 20, struct=struct, first=15)
    parquet_file(tmp_path / "a.parquet", 15, struct=struct)
    samples = open_train(name="parquet", path=str(tmp_path))
    assert len(samples) == 35
    assert samples.labels is not None
    assert samples.labels.tolist() == [i % 3 for i in range(35)]
    order = np.random.default_rng(0).permutation(35)[:20]
    order[3] = order[4]  # a repeated index is read twice
    for i, sample in zip(order.tolist(), samples.load(order), strict=True):
        assert (sample == pixels_of(random_png(i))).all()
    assert samples.name_of(16).endswith("b.parquet row 1")
    assert samples.listing.group[[0, 7, 15, 34]].tolist() == [0, 1, 0, 2]


def test_parquet_null_and_bad_images_are_named(tmp_path: Path) -> None:
    column = [
        {"bytes": random_png(0), "path": None},
        {"bytes": None, "path": "x"},
        None,
        {"bytes": b"?", "path": ""},
    ]
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    samples = open_train(name="parquet", path=str(tmp_path / "a.parquet"))
    assert samples.labels is None
    assert [sample.index for sample in samples.unreadable(range(4))] == [1, 2, 3]


def test_parquet_text_labels_and_hugging_face_names(tmp_path: Path) -> None:
    def write(name: str, labels: list[object], metadata: dict[str, str] | None = None) -> str:
        table = pa.table({"image": [random_png(i) for i in range(len(labels))], "label": labels})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
        return str(tmp_path / name)

    train, test = write("train.parquet", ["dog", "cat", None]), write("test.parquet", ["dog", "dog"])
    data = Data(name="parquet", path=train, eval_path=test)
    samples, held_out = open_samples(data, "train", 0), open_samples(data, "eval", 0)
    assert samples is not None
    assert held_out is not None
    assert samples.class_names == held_out.class_names == ("cat", "dog")
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, -1]
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [1, 1]
    named = write(
        "named.parquet", [1, 0], {"huggingface": '{"info":{"features":{"label":{"names":["ant","bee"]}}}}'}
    )
    assert open_train(name="parquet", path=named).class_names == ("ant", "bee")
    refused("label", name="parquet", path=write("odd.parquet", [0.5, 1.5]))


def test_bad_parquet(tmp_path: Path) -> None:
    path = str(parquet_file(tmp_path / "a.parquet", 3))
    refused("no column 'img'.*image.*label", name="parquet", path=path, image_column="img")
    refused("no encoded images", name="parquet", path=path, image_column="label")
    refused("no column 'coarse'.*image, label", name="parquet", path=path, label_column="coarse")
    (tmp_path / "b.parquet").write_text("nothing of the kind")
    refused("not a readable Parquet file", name="parquet", path=str(tmp_path))
    (tmp_path / "empty").mkdir()
    refused("no .parquet file", name="parquet", path=str(tmp_path / "empty"))
    refused("no file matches", name="parquet", path=str(tmp_path / "x*.parquet"))


# -------------------------------------------------------------------- arrays


def test_npz_and_npy_in_every_layout(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    expected = images.transpose(0, 3, 1, 2)
    labels = np.arange(6)[:, None] % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels, mean=np.zeros(3))
    np.savez_compressed(tmp_path / "b.npz", pictures=expected)
    np.save(tmp_path / "c.npy", images.astype(np.uint16) << 8)
    np.save(tmp_path / "d.npy", images[..., 0])
    for name in ("a.npz", "b.npz", "c.npy"):
        samples = open_train(name="npz", path=str(tmp_path / name))
        for got, want in zip(samples.load([5, 0]), expected[[5, 0]], strict=True):
            assert (got == want).all()
    assert open_train(name="npz", path=str(tmp_path / "a.npz")).labels.tolist() == [0, 1, 0, 1, 0, 1]  # type: ignore[union-attr]
    grey = open_train(name="npz", path=str(tmp_path / "d.npy")).load([1])[0]
    assert (grey == expected[1, :1]).all()


def test_vectors_stay_float32(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    np.savez(tmp_path / "v.npz", x=vectors, y=np.arange(7))
    samples = open_train(name="npz", path=str(tmp_path / "v.npz"))
    out = samples.load([6])[0]
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float32
    assert out.tolist() == vectors[6].astype(np.float32).tolist()
    assert samples.nbytes_estimate() == 7 * 5 * 4


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    for value in (3, 9):
        np.save(tmp_path / "a.npy", np.full((4 + value, 4, 4), value, np.uint8))
        samples = open_train(name="npz", path=str(tmp_path / "a.npy"))
        assert (samples.load([0])[0] == value).all()


def test_bad_arrays(tmp_path: Path) -> None:
    def saved(name: str, **arrays: np.ndarray) -> str:
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    refused(
        r"a \(2, 3\), b \(2, 3\)", name="npz", path=saved("a.npz", a=np.zeros((2, 3)), b=np.zeros((2, 3)))
    )
    refused("float64 of shape", name="npz", path=saved("b.npz", images=np.zeros((2, 4, 4))))
    np.save(tmp_path / "one.npy", np.zeros((12, 12, 3), np.uint8))
    refused(r"of shape \(12, 12, 3\) is one image", name="npz", path=str(tmp_path / "one.npy"))
    refused("2 samples and 3 labels", name="npz", path=saved("c.npz", x=np.zeros((2, 4)), y=np.zeros(3, int)))
    pickled = saved("d.npz", images=np.array([[object()]]))
    refused("npz", name="npz", path=pickled)
    (tmp_path / "e.npz").write_text("text")
    refused("not a .npy or .npz", name="npz", path=str(tmp_path / "e.npz"))


# -------------------------------------------------------------------- torchvision


def test_torchvision_errors_name_what_is_valid(tmp_path: Path) -> None:
    refused("torchvision:CIFAR10", name="torchvision:CIFAR1O", path=str(tmp_path))
    refused("torchvision:MNIST", name="torchvision:mnist", path=str(tmp_path))
    refused("data.download=true", name="torchvision:CIFAR10", path=str(tmp_path))
    refused("data.download=true", name="torchvision:SEMEION", path=str(tmp_path))  # downloads by default
    refused("does not exist", name="torchvision:CIFAR10", path=str(tmp_path / "nothing"))
    refused("needs data.path", name="torchvision:CIFAR10")
    refused("choose one of digits", name="imagenet")


@pytest.mark.slow
def test_torchvision_items_without_array_or_files() -> None:
    samples = open_train(name="torchvision:FakeData")
    assert len(samples) == 1000
    (sample,) = samples.load([3])
    import torchvision

    expected = np.asarray(torchvision.datasets.FakeData()[3][0]).transpose(2, 0, 1)
    assert (sample == expected).all()
    assert open_samples(Data(name="torchvision:FakeData"), "eval", 0) is None


def test_torchvision_stl10_trains_on_labelled_and_unlabelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    counts = {"train": 3, "test": 4, "unlabeled": 5}
    for split, count in counts.items():
        np.full((count, 3, 96, 96), len(split), np.uint8).tofile(folder / f"{split}_X.bin")
    np.array([1, 2, 3], np.uint8).tofile(folder / "train_y.bin")
    np.array([10, 1, 1, 2], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    (folder / "fold_indices.txt").write_text("0 1 2")
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    data = Data(name="torchvision:STL10", path=str(tmp_path))
    train, test = open_samples(data, "train", 0), open_samples(data, "eval", 0)
    assert train is not None
    assert test is not None
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert [int(sample.mean()) for sample in train.load([0, 7])] == [5, 9]  # type: ignore[union-attr]
    assert test.labels is not None
    assert test.labels.tolist() == [9, 0, 0, 1]


@needs_shared
def test_mnist_and_cifar10_of_the_shared_data() -> None:
    mnist = open_train(name="torchvision:MNIST", path=str(SHARED / "data"))
    assert len(mnist) == 60_000
    assert mnist.load([59_999])[0].shape == (3, 28, 28)  # type: ignore[union-attr]
    cifar = Data(name="parquet", path=str(SHARED / "data/cifar10/train.parquet"))
    samples = open_samples(
        cifar.model_copy(update={"eval_path": str(SHARED / "data/cifar10/test.parquet")}), "eval", 0
    )
    assert samples is not None
    assert len(samples) == 10_000
    assert samples.nbytes_estimate() == 10_000 * 3 * 32 * 32
    assert not samples.unreadable(range(0, 10_000, 500))


# -------------------------------------------------------------------- samples and manifest


def test_samples_are_cheap_to_send(tmp_path: Path) -> None:
    image_folder(tmp_path, 5)
    samples = open_train(name="folder", path=str(tmp_path))
    again = pickle.loads(pickle.dumps(samples))
    assert (again.load([2])[0] == samples.load([2])[0]).all()
    assert len(pickle.dumps(open_train())) < 40_000  # digits: no pixels travel


def test_manifest_round_trip_and_what_it_refuses(tmp_path: Path) -> None:
    parquet_file(tmp_path / "data/a.parquet", 10, row_group_size=4)
    samples = open_train(name="parquet", path=str(tmp_path / "data"))
    readable = np.arange(10) != 3
    path = tmp_path / "run/manifest.parquet"
    assert manifest.restore(samples.listing, path) is None
    manifest.save(samples.listing, path, readable=readable, mode="streaming", reasons={3: "it is empty"})
    table = pq.read_table(path)
    assert table.column_names == ["path", "row_group", "row", "bytes", "mtime", "readable"]
    assert table.column("row_group").to_pylist() == [0] * 4 + [1] * 4 + [2] * 2
    saved = manifest.restore(samples.listing, path)
    assert saved is not None
    assert saved.mode == "streaming"
    assert saved.readable.tolist() == readable.tolist()
    assert [str(lost) for lost in saved.unreadable(samples.listing)] == [
        f"{samples.name_of(3)} (it is empty)"
    ]
    (tmp_path / "data").rename(tmp_path / "moved")  # the same data elsewhere are the same samples
    moved = open_train(name="parquet", path=str(tmp_path / "moved"))
    assert manifest.restore(moved.listing, path) is not None
    parquet_file(tmp_path / "moved/b.parquet", 1)
    with pytest.raises(InputError, match=r"lists 11 samples.*10"):
        manifest.restore(open_train(name="parquet", path=str(tmp_path / "moved")).listing, path)
    (tmp_path / "moved/b.parquet").unlink()
    parquet_file(tmp_path / "moved/a.parquet", 10, row_group_size=5)
    with pytest.raises(InputError, match=r"sample 4 is now .*a\.parquet row 4"):
        manifest.restore(open_train(name="parquet", path=str(tmp_path / "moved")).listing, path)
    path.write_text("no manifest")
    with pytest.raises(InputError, match="not a manifest"):
        manifest.restore(moved.listing, path)
