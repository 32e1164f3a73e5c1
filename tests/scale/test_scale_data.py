"""Data on a cluster gives the batches that local data gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encoded, image_folder, parquet_file
from PIL import Image

from raysurl.data.dataset import Samples
from raysurl.data.gather import Images
from raysurl.data.names import open_samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError, RunError
from raysurl.recipe import Data
from raysurl.sampler import Plan, Request, plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The maximum number of concurrent tasks"),  # few units, many CPUs
]

Batches = list[tuple[Request, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("folder"), 300, classes=3, ragged=True, bad=3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("table")
    parquet_file(root / "a.parquet", 150, struct=True, row_group_size=40)
    parquet_file(root / "b.parquet", 150, struct=True, row_group_size=40, first=150)
    return root


def keep(request: Request, images: Images) -> tuple[Request, Images]:
    return request, images


def shifted(request: Request, images: Images) -> tuple[Request, Images]:
    """A transform that depends on the request, as an augmentation does."""
    return request, [image.float() + request.step + request.start for image in images]


def same(got: Iterator[Any], expected: Iterator[Any]) -> None:
    for (request, images), (wanted, others) in zip(got, expected, strict=True):
        assert (request.step, request.start) == (wanted.step, wanted.start)
        assert request.index.tolist() == wanted.index.tolist()
        assert isinstance(images, torch.Tensor) == isinstance(others, torch.Tensor)
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))


def setting(name: str, path: Path, **more: object) -> tuple[Data, Samples]:
    data = Data(**{"name": name, "path": str(path), "window": 50, "max_unreadable": 0.02, **more})
    samples = open_samples(data, "train", 0)
    assert samples is not None
    return data, samples


def plan_of(source: Source) -> Plan:
    return plan(source.readable, batch_size=24, seed=3, windows=source.windows)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("name", ["folder", "parquet"])
@pytest.mark.parametrize("views_on_workers", [False, True])
def test_batches_equal_the_local_ones(
    ray_session: None, folder: Path, table: Path, mode: str, name: str, views_on_workers: bool
) -> None:
    from raysurl.scale.data import prepare_split

    data, samples = setting(name, folder if name == "folder" else table, mode=mode)
    local = open_source(samples, data)
    source = prepare_split(data, samples).open(data, views_on_workers=views_on_workers)
    assert source.mode == mode
    assert source.readable.tolist() == local.readable.tolist()
    assert source.skipped == local.skipped
    assert len(source.skipped) == (3 if name == "folder" else 0)
    assert source.labels is not None
    assert source.labels.tolist() == local.labels.tolist()  # type: ignore[union-attr]
    assert source.class_names == local.class_names
    p = plan_of(local)
    transform = shifted if views_on_workers else keep
    same(source.batches(p.requests(5, 30), transform), local.batches(p.requests(5, 30), transform))


class Worker:
    """A training worker as far as data go; it holds a whole CPU."""

    def open(self, prepared: Any, data: Data, workers: int) -> None:
        self.source: Source = prepared.open(data, pipelines=workers)

    def read(self, p: Plan, first: int, last: int, rank: int, workers: int) -> Batches:
        requests = p.requests(first, last, rank=rank, world_size=workers, accumulate=2)
        return list(self.source.batches(requests, keep))


def test_two_workers_that_hold_every_cpu_read_the_same_global_batches_in_both_modes(
    ray_session: None, table: Path
) -> None:
    import ray

    from raysurl.scale.data import prepare_split

    both = [setting("parquet", table, mode=mode) for mode in ("resident", "streaming")]
    local = [open_source(samples, data) for data, samples in both]
    prepared = [prepare_split(data, samples) for data, samples in both]
    workers = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(2)]
    got: list[list[Batches]] = []
    try:
        for (data, _), alone, split in zip(both, local, prepared, strict=True):
            ray.get([worker.open.remote(split, data, 2) for worker in workers], timeout=60)
            read = [worker.read.remote(plan_of(alone), 7, 15, rank, 2) for rank, worker in enumerate(workers)]
            got.append(ray.get(read, timeout=120))
    finally:
        for worker in workers:
            ray.kill(worker)
    for alone, parts in zip(local, got, strict=True):
        images = torch.zeros(8, 24, 3, 10, 10, dtype=torch.uint8)
        for request, part in (batch for batches in parts for batch in batches):
            images[request.step - 7, request.start : request.start + len(part)] = part
        for step, (_, whole) in enumerate(alone.batches(plan_of(alone).requests(7, 15), keep)):
            assert torch.equal(images[step], whole)  # type: ignore[arg-type]


def test_shards_outlive_the_worker_that_read_them(ray_session: None, folder: Path) -> None:
    import ray

    from raysurl.scale.data import prepare_split

    data, samples = setting("folder", folder, mode="resident")
    p = plan_of(open_source(samples, data))
    prepared = prepare_split(data, samples)
    assert len(prepared.tables) > 1
    worker = ray.remote(num_cpus=1)(Worker).remote()
    ray.get(worker.open.remote(prepared, data, 1), timeout=60)
    seen = ray.get(worker.read.remote(p, 0, 5, 0, 1), timeout=60)
    ray.kill(worker)
    after = Worker()
    after.open(prepared, data, 1)
    same(iter(after.read(p, 0, 5, 0, 1)), iter(seen))


def test_resident_shards_are_views_of_the_object_store(ray_session: None, tmp_path: Path) -> None:
    import ray

    from raysurl.scale.blocks import shards_of
    from raysurl.scale.data import prepare_split

    pixels = np.random.default_rng(0).integers(
        0, 256, (64, 48, 48, 3), dtype=np.uint8
    )  # Ray copies small objects
    images = [encoded(Image.fromarray(image)) for image in pixels]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    data, samples = setting("parquet", tmp_path, mode="resident")
    prepared = prepare_split(data, samples)
    for held in prepared.tables:
        for shard in shards_of(ray.get(held)):
            assert not shard.pixels.flags.owndata
            assert not shard.pixels.flags.writeable


def test_too_many_unreadable_samples_stop_the_run(ray_session: None, folder: Path) -> None:
    from raysurl.scale.data import prepare_split

    for mode in ("resident", "streaming"):
        data, samples = setting("folder", folder, mode=mode, max_unreadable=0.005)
        with pytest.raises(InputError, match=r"3 of 300 samples.*max_unreadable.*000\.png"):
            prepare_split(data, samples)


def test_a_sample_lost_while_streaming_stops_the_run_by_name(ray_session: None, tmp_path: Path) -> None:
    from raysurl.scale.data import prepare_split

    data, samples = setting("folder", image_folder(tmp_path, 20), mode="streaming")
    source = prepare_split(data, samples).open(data)
    (tmp_path / "005.png").unlink()
    with pytest.raises(RunError, match=r"sample 5.*005\.png"):
        list(source.batches([Request(0, 0, np.arange(20))], keep))


def test_what_does_not_fit_the_store_streams_or_is_refused(ray_session: None, table: Path) -> None:
    from raysurl.scale.data import prepare_split, store_bytes

    share = 50_000 / store_bytes()  # the images take 90 kB
    data, samples = setting("parquet", table, resident_share=share)
    assert prepare_split(data, samples).open(data).mode == "streaming"
    data, samples = setting("parquet", table, resident_share=share, mode="resident")
    with pytest.raises(InputError, match=r"data\.mode=resident does not fit"):
        prepare_split(data, samples)
    data, samples = setting("parquet", table, resident_share=2 * share)
    assert prepare_split(data, samples).open(data).mode == "resident"
    assert prepare_split(data, samples, taken=store_bytes()).open(data).mode == "streaming"


def test_a_resumed_run_verifies_nothing_again(
    ray_session: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysurl.scale import data as scale_data

    data, samples = setting("folder", folder, mode="streaming")
    manifest = tmp_path / "manifest.parquet"
    done: list[int] = []
    first = scale_data.prepare_split(data, samples, manifest, progress=lambda n, total: done.append(n)).open(
        data
    )
    assert done[-1] == 300
    monkeypatch.setattr(scale_data, "verify", None)
    again = scale_data.prepare_split(data, samples, manifest).open(data)
    assert again.readable.tolist() == first.readable.tolist()
    assert again.skipped == first.skipped
    same(
        again.batches(plan_of(again).requests(0, 1), keep), first.batches(plan_of(first).requests(0, 1), keep)
    )


def test_embedded_digits_go_through_ray_data_and_streaming_stops_early(ray_session: None) -> None:
    from raysurl.scale.data import prepare_split

    for mode in ("resident", "streaming"):
        data = Data(name="digits", mode=mode)
        samples = open_samples(data, "train", 0)
        assert samples is not None
        source = prepare_split(data, samples).open(data)
        batches = source.batches(plan(source.readable, batch_size=64, seed=0).requests(0, 44), keep)
        request, images = next(batches)
        assert np.array_equal(images[5].numpy(), samples.load(request.index[5:6])[0])  # type: ignore[arg-type]
        batches.close()  # type: ignore[attr-defined]
        assert len(list(source.batches([request], keep))) == 1


def test_ranges_cut_row_groups_only_where_they_are_long(tmp_path: Path) -> None:
    from raysurl.scale.data import ranges

    parquet_file(tmp_path / "a.parquet", 50, row_group_size=20)
    parquet_file(tmp_path / "b.parquet", 15, row_group_size=20)
    _, samples = setting("parquet", tmp_path)  # groups end at 20, 40, 50, 65
    assert ranges(samples, 100) == [(0, 65)]
    assert ranges(samples, 30) == [(0, 20), (20, 50), (50, 65)]
    assert ranges(samples, 12) == [(0, 12), (12, 20), (20, 32), (32, 40), (40, 50), (50, 62), (62, 65)]
