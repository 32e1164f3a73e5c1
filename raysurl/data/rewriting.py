"""A data set written again in one random order, as Parquet files: the work of any process on a part of it.

Two passes, so that no process holds more than a part and no sample is read twice: `scatter` reads samples that follow
each other and sorts them by the file that they belong to; `collect` joins what belongs to one file. What a pass leaves
is renamed into place when it is whole, so that work that was stopped goes on with what is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from raysurl import streams
from raysurl.data.dataset import Samples
from raysurl.data.decode import DecodeError
from raysurl.data.grouping import bytes_each
from raysurl.data.manifest import Unreadable
from raysurl.data.readers import Encoded
from raysurl.errors import InputError

PART_BYTES = 2**28  # of a file, and of what a process reads at once, about
GROUP_ROWS = 256  # of a row group that is written
_MOST_NUMBER = 2**16  # class numbers up to which names are kept


@dataclass(frozen=True, eq=False)
class Rewriting:
    """`place` (N,) int64: where each sample comes to stand; `rows` to a file, the last one has fewer. `folder`: what is
    not whole yet."""

    samples: Samples
    place: NDArray[np.int64]
    rows: int
    folder: Path

    @property
    def files(self) -> int:
        return -(-len(self.place) // self.rows)

    @property
    def scattered(self) -> Path:
        return self.folder / ".scattered"

    @property
    def done(self) -> Path:
        """Hidden, so that no reader takes it for a data set."""
        return self.folder / ".files"


def rewriting_of(samples: Samples, seed: int, folder: Path) -> Rewriting:
    """Raises InputError for samples that are in memory, where any order costs the same."""
    if samples.reader.in_memory:
        raise InputError(
            f"{samples.listing.root} is held in memory, where every order costs the same; there is nothing to rewrite"
        )
    bits = streams.raw_bits(len(samples), seed, "shuffled data")
    place = np.empty(len(samples), np.int64)
    place[np.argsort(bits, kind="stable")] = np.arange(len(samples))
    return Rewriting(samples, place, max(PART_BYTES // bytes_each(samples.listing), 1), folder)


def identity(rewriting: Rewriting, seed: int) -> dict[str, Any]:
    """What must be the same for unfinished work to be gone on with."""
    digest = hashlib.blake2b(digest_size=16)
    listing = rewriting.samples.listing
    for array in (listing.file, listing.group, listing.row, listing.stamps, rewriting.samples.labels):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    digest.update("\0".join(listing.paths.to_pylist()).encode())
    return {
        "root": listing.root,
        "samples": len(rewriting.place),
        "seed": seed,
        "rows": rewriting.rows,
        "listing": digest.hexdigest(),
    }


# -------------------------------------------------------------------- first pass


def scatter(rewriting: Rewriting, begin: int, end: int) -> None:
    """Read the samples begin … end−1 and write them as one batch for each file that some belong to."""
    target = rewriting.scattered / f"{begin:012}-{end:012}.arrow"
    if target.exists():
        return
    samples, index = rewriting.samples, np.arange(begin, end)
    found, lost = _bytes_of(samples, index)
    kept = np.array([i for i in index.tolist() if i in found], np.int64)
    kept = kept[np.argsort(rewriting.place[kept], kind="stable")]
    file = rewriting.place[kept] // rewriting.rows
    parts = np.split(kept, np.flatnonzero(np.diff(file)) + 1) if len(kept) else []
    meta = {
        "files": [int(rewriting.place[part[0]] // rewriting.rows) for part in parts],
        "lost": [asdict(sample) for sample in lost],
    }
    batches = [_batch(rewriting, part, [found[i] for i in part.tolist()]) for part in parts]
    schema = _schema(samples).with_metadata({"raysurl": json.dumps(meta)})
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    _into_place(unfinished, target)


def _bytes_of(samples: Samples, index: NDArray[np.int64]) -> tuple[dict[int, bytes], list[Unreadable]]:
    """The samples' own bytes, never encoded anew where there are any, and those that cannot be fetched."""
    found: dict[int, bytes] = {}
    lost: list[Unreadable] = []
    for i, sample in zip(index.tolist(), samples.read(index), strict=True):
        try:
            found[i] = encoded(sample)
        except DecodeError as error:
            lost.append(Unreadable(i, samples.name_of(i), str(error)))
    return found, lost


def encoded(sample: Encoded) -> bytes:
    """A sample as a file: its bytes, or pixels (3, h, w) uint8 as PNG, which loses nothing. Raises DecodeError."""
    if isinstance(sample, DecodeError):
        raise sample
    if isinstance(sample, bytes):
        return sample
    if sample.dtype != np.uint8 or sample.ndim != 3:
        raise DecodeError(
            f"pixels of type {sample.dtype} and shape {sample.shape} have no file to be kept in"
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sample.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


def _schema(samples: Samples) -> Any:
    kind = pa.large_string() if samples.text_labels else pa.int64()
    label = [] if samples.labels is None else [pa.field("label", kind)]
    fields = [pa.field("image", pa.large_binary()), *label, pa.field("name", pa.large_string())]
    return pa.schema([*fields, pa.field("index", pa.int64())])


def _batch(rewriting: Rewriting, index: NDArray[np.int64], images: Sequence[bytes]) -> Any:
    samples = rewriting.samples
    columns: list[Any] = [pa.array(images, pa.large_binary())]
    if samples.labels is not None:
        labels = samples.labels[index]
        if samples.text_labels:
            values: Any = [None if i < 0 else (samples.class_names or ())[i] for i in labels.tolist()]
        else:
            values = [None if value < 0 else value for value in samples.original_labels()[index].tolist()]
        columns.append(pa.array(values, _schema(samples).field("label").type))
    names = [samples.name_of(i) for i in index.tolist()]
    columns += [pa.array(names, pa.large_string()), pa.array(index, pa.int64())]
    return pa.record_batch(columns, schema=_schema(samples))


# -------------------------------------------------------------------- second pass


def collect(rewriting: Rewriting, number: int) -> int:
    """Write file `number` from what the first pass left for it; returns its rows."""
    target = rewriting.done / f"part-{number:06}.parquet"
    if target.exists():
        return pq.ParquetFile(target).metadata.num_rows
    batches = []
    for path in sorted(rewriting.scattered.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            files = json.loads(reader.schema.metadata[b"raysurl"])["files"]
            if number in files:
                batches.append(reader.get_batch(files.index(number)))
    table = pa.Table.from_batches(batches, _schema(rewriting.samples))
    order = np.argsort(rewriting.place[table.column("index").to_numpy()], kind="stable")
    table = table.take(pa.array(order)).replace_schema_metadata(class_names(rewriting.samples))
    unfinished = rewriting.folder / f".{target.name}.{os.getpid()}"
    pq.write_table(table, unfinished, row_group_size=GROUP_ROWS, compression="none")
    _into_place(unfinished, target)
    return len(table)


def _into_place(unfinished: Path, target: Path) -> None:
    """Rename what is on the disk, not only in its cache."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(target)


def lost_of(rewriting: Rewriting) -> list[Unreadable]:
    """All samples that the first pass could not fetch."""
    found: list[Unreadable] = []
    for path in sorted(rewriting.scattered.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            meta = json.loads(pa.ipc.open_file(source).schema.metadata[b"raysurl"])
            found += [Unreadable(**sample) for sample in meta["lost"]]
    return found


def class_names(samples: Samples) -> dict[str, str] | None:
    """Names by number in the schema's metadata, as Hugging Face data sets keep them."""
    names = samples.names_by_value()
    if samples.labels is None or samples.text_labels or not names:
        return None
    numbers = [int(value) for value in names]
    if max(numbers) >= _MOST_NUMBER:
        return None
    listed = [names.get(str(number), str(number)) for number in range(max(numbers) + 1)]
    features = {"image": {"_type": "Image"}, "label": {"names": listed, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}
