import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import image_folder, parquet_file

from raysurl.data import shards as shards_module
from raysurl.data.dataset import Samples
from raysurl.data.gather import Gather, Images
from raysurl.data.names import open_samples
from raysurl.data.prefetch import prefetch
from raysurl.data.shards import pack, pack_all
from raysurl.data.source import ResidentSource, Source, StreamingSource, open_source
from raysurl.errors import InputError, RunError
from raysurl.recipe import Data
from raysurl.sampler import Request, plan


def keep(request: Request, images: Images) -> tuple[Request, Images]:
    return request, images


def opened(path: Path, manifest: Path | None = None, **settings: object) -> tuple[Samples, Source]:
    data = Data(**{"name": "folder", "path": str(path), "window": 16, **settings})
    samples = open_samples(data, "train", 0)
    assert samples is not None
    return samples, open_source(samples, data, manifest_path=manifest)


def same(got: Images, samples: Samples, index: np.ndarray) -> None:
    """The batch holds exactly what each sample is when loaded alone."""
    expected = [samples.load([i])[0] for i in index.tolist()]
    assert isinstance(got, torch.Tensor) == (len({e.shape for e in expected}) == 1)  # type: ignore[union-attr]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.uint8
        assert np.array_equal(a.numpy(), b)


# -------------------------------------------------------------------- batches


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shard_bytes", [None, 1000])
def test_batches_are_the_requested_samples_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, ragged: bool, shard_bytes: int | None
) -> None:
    if shard_bytes:
        monkeypatch.setattr(shards_module, "SHARD_BYTES", shard_bytes)
    samples, source = opened(image_folder(tmp_path, 40, ragged=ragged), mode=mode)
    assert isinstance(source, ResidentSource if mode == "resident" else StreamingSource)
    p = plan(source.readable, batch_size=12, seed=0, windows=source.windows)
    requests = list(p.requests(1, 5, rank=1, world_size=2, accumulate=3))
    batches = list(source.batches(requests, keep))
    assert [(r.step, r.start) for r, _ in batches] == [(r.step, r.start) for r in requests]
    for request, images in batches:
        same(images, samples, request.index)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_parquet_in_both_modes(tmp_path: Path, mode: str) -> None:
    parquet_file(tmp_path / "a.parquet", 50)
    samples, source = opened(tmp_path, name="parquet", mode=mode)
    index = np.random.default_rng(0).permutation(50)
    for request, images in source.batches([Request(0, 0, index[:30]), Request(0, 30, index[30:])], keep):
        same(images, samples, request.index)
    assert source.labels is not None
    assert source.labels.tolist() == [i % 3 for i in range(50)]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_vectors(tmp_path: Path, mode: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    _, source = opened(tmp_path / "v.npy", name="npz", mode=mode)
    ((_, batch),) = source.batches([Request(0, 0, np.array([7, 3]))], keep)
    assert isinstance(batch, torch.Tensor)
    assert batch.numpy().tolist() == vectors[[7, 3]].tolist()


def test_a_streaming_window_may_hold_a_sample_of_two_epochs(tmp_path: Path) -> None:
    image_folder(tmp_path / "folder", 10)
    parquet_file(tmp_path / "parquet/a.parquet", 10)
    for name in ("folder", "parquet"):
        samples, source = opened(tmp_path / name, name=name, mode="streaming", window=100)
        requests = [Request(0, 0, np.arange(10)), Request(1, 0, np.arange(9, -1, -1))]
        for request, images in source.batches(requests, keep):
            same(images, samples, request.index)


def test_a_batch_is_a_copy_that_may_be_written_to(tmp_path: Path) -> None:
    _, source = opened(image_folder(tmp_path, 4), mode="resident")
    request = Request(0, 0, np.array([1]))
    for _ in range(2):
        ((_, batch),) = source.batches([request], keep)
        assert isinstance(batch, torch.Tensor)
        assert batch.float().mean() > 1
        batch.zero_()


def test_shards_hold_at_most_their_bytes_and_keep_every_index() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (3, 4, 2 + i % 3), dtype=np.uint8) for i in range(20)]
    shards = list(pack_all(iter(arrays)))
    assert len(shards) == 1
    gather = Gather([pack(arrays[:7]), pack(arrays[7:8]), pack(arrays[8:])])
    got = gather(np.array([19, 7, 0, 8]))
    for image, i in zip(got, (19, 7, 0, 8), strict=True):
        assert np.array_equal(image.numpy(), arrays[i])


def test_shard_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 100)
    arrays = [np.full((3, 4, 2), i, np.uint8) for i in range(10)]  # 24 bytes each: four fit
    sizes = [len(shard) for shard in pack_all(arrays)]
    assert sizes == [4, 4, 2]


# -------------------------------------------------------------------- unreadable samples


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("ragged", [False, True])
def test_unreadable_samples_leave_the_plan_and_are_named(tmp_path: Path, mode: str, ragged: bool) -> None:
    samples, source = opened(image_folder(tmp_path, 30, bad=2, ragged=ragged), mode=mode, max_unreadable=0.1)
    assert np.flatnonzero(~source.readable).tolist() == [0, 1]
    assert [sample.index for sample in source.skipped] == [0, 1]
    assert "2 unreadable samples skipped" in source.describe()
    assert "000.png" in source.describe()
    p = plan(source.readable, batch_size=28, seed=0)
    ((request, images),) = source.batches(p.requests(0, 1), keep)
    assert sorted(request.index.tolist()) == list(range(2, 30))
    same(images, samples, request.index)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_too_many_unreadable_samples_stop_the_run(tmp_path: Path, mode: str) -> None:
    image_folder(tmp_path, 100, bad=2)
    with pytest.raises(InputError, match=r"2 of 100 samples.*data\.max_unreadable=0\.01.*000\.png"):
        opened(tmp_path, mode=mode)
    assert opened(tmp_path, mode=mode, max_unreadable=0.02)[1].skipped


def test_a_sample_lost_while_streaming_stops_the_run_by_name(tmp_path: Path) -> None:
    _, source = opened(image_folder(tmp_path, 8), mode="streaming")
    (tmp_path / "005.png").unlink()
    with pytest.raises(RunError, match=r"sample 5.*005\.png"):
        list(source.batches([Request(0, 0, np.arange(8))], keep))


# -------------------------------------------------------------------- the mode


def test_the_mode_follows_from_the_size(tmp_path: Path) -> None:
    image_folder(tmp_path, 40)  # 40 · 300 bytes
    data = Data(name="folder", path=str(tmp_path), resident_share=0.5, window=8)
    samples = open_samples(data, "train", 0)
    assert samples is not None
    assert open_source(samples, data, memory=24_000).mode == "resident"
    small = open_source(samples, data, memory=23_998)
    assert small.mode == "streaming"
    assert "0.0 MB decoded" in small.describe()
    assert (
        "each sample is read alone, so that data.window changes nothing: all are shuffled" in small.describe()
    )
    with pytest.raises(InputError, match=r"data\.mode=resident does not fit"):
        open_source(samples, data.model_copy(update={"mode": "resident"}), memory=23_998)


def test_a_resumed_run_keeps_its_mode_and_its_samples(tmp_path: Path) -> None:
    folder, manifest = image_folder(tmp_path / "files", 40, bad=1), tmp_path / "run/manifest.parquet"
    _, first = opened(folder, manifest, mode="streaming", max_unreadable=0.1)
    _, again = opened(folder, manifest, max_unreadable=0.1)  # mode=auto would choose resident
    assert again.mode == "streaming"
    assert again.readable.tolist() == first.readable.tolist()
    assert again.skipped == first.skipped
    with pytest.raises(InputError, match=r"began with data\.mode=streaming"):
        opened(folder, manifest, mode="resident", max_unreadable=0.1)
    image_folder(folder, 41, bad=1)
    with pytest.raises(InputError, match="41 samples"):
        opened(folder, manifest, max_unreadable=0.1)


def test_a_resident_run_whose_sample_was_lost_is_not_resumed(tmp_path: Path) -> None:
    folder, manifest = image_folder(tmp_path / "files", 40), tmp_path / "run/manifest.parquet"
    opened(folder, manifest, mode="resident")
    (folder / "007.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"007\.png"):
        opened(folder, manifest, max_unreadable=0.5)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    for mode in ("resident", "streaming"):
        data = Data(name="digits", mode=mode)
        samples = open_samples(data, "train", 0)
        assert samples is not None
        seen: list[tuple[int, int]] = []
        open_source(samples, data, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (1437, 1437)


# -------------------------------------------------------------------- prefetching


def test_prefetch_keeps_order_and_runs_ahead_no_further_than_its_depth() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    items = prefetch(numbers(), depth=2)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one handed over, two waiting, one in hand
    assert list(items) == list(range(1, 20))


def test_prefetch_raises_where_the_item_would_have_come() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    items = prefetch(numbers())
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_stopping_early_closes_the_producer_and_its_thread() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    items = prefetch(endless())
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threading.active_count() == before


def test_an_error_in_the_transform_reaches_the_consumer(tmp_path: Path) -> None:
    _, source = opened(image_folder(tmp_path, 4))

    def fail(request: Request, images: Images) -> None:
        raise ZeroDivisionError(f"step {request.step}")

    with pytest.raises(ZeroDivisionError, match="step 3"):
        list(source.batches([Request(3, 0, np.arange(2))], fail))
