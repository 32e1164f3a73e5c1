"""Classes per batch of streaming data that are sorted by class, in every format."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import random_png

from raysurl.data import grouping
from raysurl.data.dataset import Samples
from raysurl.data.manifest import Listing
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.data.tree import FileEntry
from raysurl.errors import InputError
from raysurl.recipe import Data, load_recipe
from raysurl.sampler import plan
from raysurl.train.loading import plan_of
from raysurl.windows import classes_in_a_shuffle

CLASSES, EACH, BATCH = 20, 20, 32
LABELS = np.repeat(np.arange(CLASSES), EACH)


def folder(root):
    for i, label in enumerate(LABELS):
        path = root / f"class{label:02}" / f"{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random_png(i, 4, 4))
    return {"name": "folder", "path": str(root)}


def table(root, *, row_group_size=10, files=4):
    parts = np.array_split(np.arange(len(LABELS)), files)
    for number, index in enumerate(parts):
        images = [random_png(int(i), 4, 4) for i in index]
        columns = pa.table({"image": images, "label": LABELS[index]})
        pq.write_table(columns, root / f"{number}.parquet", row_group_size=row_group_size)
    return {"name": "parquet", "path": str(root)}


def npz(root):
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 4, 4, 3), dtype=np.uint8)
    np.savez(root / "a.npz", image=images, label=LABELS)
    return {"name": "npz", "path": str(root / "a.npz")}


def torchvision_files(root):
    return {**folder(root), "name": "torchvision:ImageFolder"}


def torchvision_items(root):
    """Flowers-102 as its authors give it, which torchvision reads item by item."""
    from scipy.io import savemat

    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for i in range(len(LABELS)):
        (base / "jpg" / f"image_{i + 1:05}.jpg").write_bytes(random_png(i, 4, 4))
    savemat(base / "imagelabels.mat", {"labels": LABELS[None] + 1})
    savemat(
        base / "setid.mat", {"trnid": [np.arange(1, 381)], "valid": [np.arange(381, 401)], "tstid": [[1, 2]]}
    )
    return {"name": "torchvision:Flowers102", "path": str(root)}


def torchvision_array(root):
    """SVHN as its authors give it: one array."""
    from scipy.io import savemat

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, len(LABELS)), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(root / f"{split}_32x32.mat", {"X": images, "y": (LABELS % 10 + 1)[:, None]})
    return {"name": "torchvision:SVHN", "path": str(root)}


def opened(settings, **more):
    data = Data(**{"mode": "streaming", **settings, **more})
    samples = open_samples(data, "train", 0)
    return open_source(samples, data)


def seen(source, p):
    """Mean number of classes in the batches that the source hands out over an epoch, and that of a full shuffle."""
    batches = source.images(p.requests(0, p.steps_per_epoch))
    found = [len(np.unique(source.labels[request.index])) for request, _ in batches]
    counts = np.bincount(source.labels)
    return np.mean(found), classes_in_a_shuffle(counts, len(source.labels), p.batch_size)


@pytest.fixture
def no_integrity_check(monkeypatch):
    for name in ("svhn", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.check_integrity", lambda *_: True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_integrity_check")
@pytest.mark.parametrize(
    "make", [folder, table, npz, torchvision_files, torchvision_items, torchvision_array]
)
def test_a_batch_of_sorted_data_holds_the_classes_of_a_full_shuffle(make, tmp_path):
    source = opened(make(tmp_path))
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    found, full = seen(source, p)
    assert found == pytest.approx(full, rel=0.05)
    assert grouping.mixing(p, source.labels) == ""


def test_digits_sorted_by_class_are_all_shuffled_too():
    source = opened({"name": "digits"})
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    assert source.windows is None
    assert "all are shuffled" in source.describe()
    assert not p.in_windows


class ShardReader:
    """Samples of tar shards, which are read from their beginning: what any reader of groups looks like."""

    in_memory, grouped = False, True

    def __init__(self, root):
        self.root = root

    def read(self, path, group, rows, stamp=None):
        with tarfile.open(self.root / path) as shard:
            members = shard.getmembers()
            return [shard.extractfile(members[row]).read() for row in rows.tolist()]


def shards(root, each):
    """Class-sorted tar shards of `each` samples, as samples."""
    entries = []
    for begin in range(0, len(LABELS), each):
        path = root / f"{begin:04}.tar"
        with tarfile.open(path, "w") as shard:
            for i in range(begin, begin + each):
                member, content = tarfile.TarInfo(f"{i:04}.png"), random_png(i, 4, 4)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
        entries.append(FileEntry(path.name, path.stat().st_size, 1))
    listing = Listing.of_groups(str(root), entries, [[each]] * len(entries), grouped=False)
    return Samples(listing, ShardReader(root), LABELS)


@pytest.mark.parametrize("window", [None, 100])
def test_shards_are_mixed_as_row_groups_are(window, tmp_path):
    data = Data(name="folder", mode="streaming", window=window)
    source = open_source(shards(tmp_path, 10), data)
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    assert p.in_windows == (window is not None)
    found, full = seen(source, p)
    assert found > 0.95 * full


# -------------------------------------------------------------------- windows smaller than the data


@pytest.mark.slow
def test_groups_in_windows_come_near_a_full_shuffle_where_they_can(tmp_path):
    source = opened(table(tmp_path, row_group_size=2), window=100)
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    found, full = seen(source, p)
    assert p.in_windows
    assert found > 0.95 * full
    said = grouping.mixing(p, source.labels)
    assert said.startswith(
        f"a batch of 32 holds samples of {found:.0f} classes, in a full shuffle {full:.0f}"
    )


@pytest.mark.slow
def test_where_they_cannot_the_number_is_said_with_its_cause_and_what_helps(tmp_path):
    source = opened(table(tmp_path, row_group_size=20), window=100, reads=1)
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    found, full = seen(source, p)
    assert found < 0.5 * full
    said = grouping.mixing(p, source.labels)
    assert said.startswith(f"warning: a batch of 32 holds samples of {found:.0f} classes, in a full shuffle")
    assert "groups of 20 rows, and a window of 100 samples holds 5 of them" in said
    assert "raysurl shuffle" in said
    more = opened(table(tmp_path, row_group_size=20), window=100)
    found, _ = seen(more, plan(more.readable, batch_size=BATCH, seed=0, windows=more.windows))
    assert found > 0.9 * full
    unlabelled = opened(table(tmp_path, row_group_size=20), window=100, labels="none", reads=1)
    p = plan(unlabelled.readable, batch_size=BATCH, seed=0, windows=unlabelled.windows)
    said = grouping.mixing(p, None)
    assert "groups of rows" in said
    assert not said.startswith("warning")


def test_each_group_is_read_once_an_epoch_and_once_more_at_a_seam(tmp_path, monkeypatch):
    source = opened(table(tmp_path, row_group_size=10), window=100, reads=1)
    p = plan(source.readable, batch_size=BATCH, seed=0, windows=source.windows)
    read = []
    real = type(source.samples.reader)._read
    monkeypatch.setattr(
        type(source.samples.reader), "_read", lambda *given: read.append(given[1:3]) or real(*given)
    )
    list(source.images(p.requests(0, p.steps_per_epoch)))
    assert len(read) <= 40 + 4  # groups, and seams
    assert len(set(read)) == 40


def test_windows_are_of_the_bytes_that_samples_take(tmp_path):
    data = Data(**table(tmp_path), mode="streaming")
    samples = open_samples(data, "train", 0)
    each = grouping.bytes_each(samples.listing)
    assert each == sum(path.stat().st_size for path in tmp_path.iterdir()) // len(LABELS)
    assert grouping.windows_of(samples, data).size == 2**32 // each
    few = open_samples(data.model_copy(update={"limit": 100}), "train", 0)
    assert grouping.bytes_each(few.listing) == pytest.approx(each, rel=0.1)


def test_a_window_that_memory_cannot_hold_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "free_memory", lambda: 10_000)
    said = opened(table(tmp_path), window=100).describe()
    assert "warning: a window takes about 0.0 MB and 0.0 MB are free" in said


def test_the_runs_order_is_that_of_its_seed_and_has_one_switch(tmp_path):
    settings = table(tmp_path, row_group_size=4)
    given = [f"data.{key}={value}" for key, value in settings.items()]
    recipe = load_recipe([*given, "data.mode=streaming", "data.window=100", "train.batch_size=32", "seed=3"])
    source = opened(settings, window=100)
    p = plan_of(recipe, source)
    assert (p.seed, p.windows.size, p.window) == (3, 100, None)
    assert p.in_windows


@pytest.mark.parametrize("setting", ["data.window=0", "data.reads=0"])
def test_bad_settings_are_one_sentence(setting):
    with pytest.raises(InputError, match=setting.partition("=")[0]):
        load_recipe([setting])
