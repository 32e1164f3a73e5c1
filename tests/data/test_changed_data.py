"""Files that are replaced between two starts of a run, or while it streams."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from citations import citation_files
from image_files import image_folder, parquet_file, random_png

from raysurl.data.names import open_samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError, RunError
from raysurl.recipe import Data
from raysurl.sampler import Request

SECOND = 1_000_000_000


def files(root: Path, kind: str) -> dict[str, object]:
    """A data set of twelve samples."""
    root.mkdir()
    if kind == "folder":
        return {"name": "folder", "path": str(image_folder(root, 12))}
    if kind == "parquet":
        for name, first in (("a", 0), ("b", 6)):
            parquet_file(root / f"{name}.parquet", 6, first=first)
        return {"name": "parquet", "path": str(root)}
    if kind == "vectors":
        pq.write_table(pa.table({"a": np.arange(12.0), "b": np.ones(12)}), root / "v.parquet")
        return {"name": "parquet", "path": str(root)}
    array = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    if kind == "npz":
        np.savez(root / "x.npz", images=array)
        return {"name": "npz", "path": str(root / "x.npz")}
    np.save(root / "x.npy", array)
    return {"name": "npz", "path": str(root / "x.npy")}


def opened(data: dict[str, object], manifest: Path | None = None, mode: str = "streaming") -> Source:
    settings = Data(**{**data, "mode": mode, "window": 4})
    samples = open_samples(settings, "train", 0)
    assert samples is not None
    return open_source(samples, settings, manifest_path=manifest)


def all_of(source: Source) -> None:
    for _ in source.batches([Request(0, 0, np.arange(12))], lambda request, images: images):
        pass


def last(root: Path) -> Path:
    return sorted(root.iterdir())[-1]


def later(path: Path) -> None:
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + SECOND))


def other_of_one_size(path: Path) -> None:
    """Other content of as many bytes, a second later."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + SECOND))


def other_of_one_time(path: Path) -> None:
    """Another size, at the same time."""
    about = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def renamed_over(path: Path) -> None:
    other = path.with_name(".other")
    shutil.copy(path, other)
    later(other)
    other.replace(path)


CHANGES = [later, other_of_one_size, other_of_one_time, renamed_over]
KINDS = ["folder", "parquet", "npz", "npy"]


@pytest.mark.parametrize("kind", [*KINDS, "vectors"])
@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("change", [later, other_of_one_time])
def test_a_changed_file_is_refused_when_the_run_goes_on(
    tmp_path: Path, kind: str, mode: str, change: Callable[[Path], None]
) -> None:
    data, manifest = files(tmp_path / "data", kind), tmp_path / "run/manifest.parquet"
    opened(data, manifest, mode)
    opened(data, manifest, mode)
    change(last(tmp_path / "data"))
    with pytest.raises(
        InputError, match=r"has changed since the run began|is not a readable Parquet file"
    ) as caught:
        opened(data, manifest, mode)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_streams_is_named(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    data = files(tmp_path / "data", kind)
    source = opened(data)
    all_of(source)
    change(last(tmp_path / "data"))
    with pytest.raises(
        RunError, match=r"was readable when the run began.*changed since the data were listed"
    ):
        all_of(source)


def test_resident_data_do_not_care_what_becomes_of_their_files(tmp_path: Path) -> None:
    data = files(tmp_path / "data", "folder")
    source = opened(data, mode="resident")
    later(last(tmp_path / "data"))
    all_of(source)


def test_many_changed_files_are_counted_and_skipped_ones_may_change(tmp_path: Path) -> None:
    root, manifest = image_folder(tmp_path / "data", 40, bad=1), tmp_path / "run/manifest.parquet"
    data = {"name": "folder", "path": str(root), "max_unreadable": 0.1}
    opened(data, manifest)
    (root / "000.png").write_bytes(b"still no image")
    opened(data, manifest)
    for path in sorted(root.iterdir())[5:8]:
        later(path)
    with pytest.raises(
        InputError, match=r"005\.png has changed since the run began \(3 files have\): its time"
    ):
        opened(data, manifest)


def test_a_copy_that_keeps_its_times_goes_on(tmp_path: Path) -> None:
    data, manifest = files(tmp_path / "data", "parquet"), tmp_path / "run/manifest.parquet"
    opened(data, manifest)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    opened({**data, "path": str(tmp_path / "copy")}, manifest)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "copy")
    opened({**data, "path": str(link)}, manifest)


def test_a_manifest_of_before_sizes_and_times_is_read(tmp_path: Path) -> None:
    data, manifest = files(tmp_path / "data", "folder"), tmp_path / "run/manifest.parquet"
    opened(data, manifest)
    table = pq.read_table(manifest)
    pq.write_table(table.drop_columns(["bytes", "mtime"]), manifest)
    later(last(tmp_path / "data"))
    opened(data, manifest)


def test_remote_files_are_known_by_size_and_time(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    files(tmp_path / "data", "parquet")
    memory.put(str(tmp_path / "data"), "/changed/data", recursive=True)
    data, manifest = {"name": "parquet", "path": "memory://changed/data"}, tmp_path / "run/manifest.parquet"
    source = opened(data, manifest)
    all_of(source)
    parquet_file(tmp_path / "data/b.parquet", 6, first=20)
    memory.put(str(tmp_path / "data/b.parquet"), "/changed/data/b.parquet")
    with pytest.raises(RunError, match="changed since the data were listed"):
        all_of(source)
    with pytest.raises(InputError, match="has changed since the run began"):
        opened(data, manifest)


def test_planetoid_and_torchvision_data_are_compared_too(tmp_path: Path) -> None:
    data, manifest = citation_files(tmp_path / "graph"), tmp_path / "run/manifest.parquet"
    opened(data, manifest, "resident")
    later(tmp_path / "graph/Cora/raw/ind.cora.tx")
    with pytest.raises(InputError, match="has changed since the run began"):
        opened(data, manifest, "resident")
    for name in ("0", "1"):
        (tmp_path / f"flowers/{name}").mkdir(parents=True)
        (tmp_path / f"flowers/{name}/x.png").write_bytes(random_png(int(name)))
    data = {"name": "torchvision:ImageFolder", "path": str(tmp_path / "flowers")}
    manifest = tmp_path / "run/flowers.parquet"
    opened(data, manifest)
    later(tmp_path / "flowers/1/x.png")
    with pytest.raises(InputError, match=r"1/x\.png has changed"):
        opened(data, manifest)
