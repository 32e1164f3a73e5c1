"""Embeddings of a data set in one Parquet file, made part by part, so that what was interrupted goes on.

A part is PART samples and becomes a row group of the file. Until the file is whole its parts lie in a folder beside it,
with a note of what they are of; the same call again takes those that are there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl import plain
from raysurl.errors import InputError
from raysurl.paths import sha256, whole

if TYPE_CHECKING:
    from raysurl.data.dataset import Samples
    from raysurl.data.names import Split
    from raysurl.data.source import Images, Source
    from raysurl.encoder import TrainedEncoder

PART = 16_384  # samples
DIGEST = 16  # bytes
NOTE = "about.json"
POOL = "raysurl.scale.embed"  # Ray is imported only where it is asked for
Unit = tuple[int, NDArray[np.int64]]  # number of a part, its samples


class Embedding(Protocol):
    """Who embeds: this process, or workers under Ray."""

    source: Source

    def tables(self, units: Sequence[Unit]) -> Iterator[tuple[int, Any]]:
        """The table (see `embedded`) of each part, with its number, in any order."""


def parts_of(target: Path) -> Path:
    """The folder of the parts of a file that is not whole yet."""
    return target.with_name(f".{target.name[:200]}.parts")


def write_embeddings(
    given: Mapping[str, str],
    target: Path,
    split: Split = "train",
    say: Callable[[str], object] = print,
    *,
    workers: int = 0,
) -> int:
    """Embed a split of the data with the encoder that `run=` names among the arguments `given`; returns the rows.

    `workers`: processes under Ray, each with its parts; 0: this process alone.

    Columns index, name, path, row, label, pixels, height, width, embedding (D fp32). `pixels` is a digest of the image
    as it was decoded, null for vectors. In the metadata of the schema stand, as JSON under `raysurl`: class names by
    label, the data and how they were opened, the model, the commit of this program. Raises InputError before anything
    is written. A file that is there already must be of the same, and stays.
    """
    from raysurl.data.names import open_samples
    from raysurl.encoder import check_width, named_encoder
    from raysurl.paths import given_path

    found = named_encoder(given)
    recipe = found.recipe
    samples = open_samples(recipe.data, split, seed=recipe.stream_seed, depth=found.depth)
    if samples is None:
        raise InputError("the data have no test set; name it with data.eval_path=")
    check_width(recipe, samples.width())
    about = {
        "class_names": samples.names_by_value(),
        **described(given_path("run", given["run"]), found, samples),
    }
    about["data"] |= {"split": split, "settings": recipe.data.model_dump(mode="json")}
    about["data"]["listing"] = _listed(samples)
    if target.is_file():
        return _made_before(target, about, say)
    there = _parts_there(parts_of(target), about)
    embedding: Embedding = (
        importlib.import_module(POOL).Pool(found, samples, workers) if workers else Alone(found, samples)
    )
    for sentence in embedding.source.sentences():
        say(sentence)
    index = np.flatnonzero(embedding.source.readable)
    if not len(index):
        raise InputError("no sample of the data can be read, so that there is nothing to embed")
    parts = parts_of(target)
    _write_parts(parts, there, embedding, index, about, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    dim = joined(parts, -(-len(index) // PART), about, target)
    shutil.rmtree(parts)
    say(f"{len(index)} embeddings of {dim} dimensions: {target}")
    if recipe.data.limit and "data.limit" not in given and split == "train":
        say(f"the run took data.limit={recipe.data.limit} of the samples; data.limit= embeds all")
    return len(index)


class Alone:
    """This process embeds, on its GPU where there is one."""

    def __init__(self, found: TrainedEncoder, samples: Samples) -> None:
        from raysurl.runtime import default_device
        from raysurl.train import local

        self.found, self.samples, self.device = found, samples, default_device()
        self.source, _ = local.open_sources(found.recipe, samples, None)
        found.encoder.to(self.device)

    def tables(self, units: Sequence[Unit]) -> Iterator[tuple[int, Any]]:
        for number, some in units:
            yield number, embedded(self.found, self.source, self.samples, some, self.device)


def _write_parts(
    parts: Path,
    there: set[int],
    embedding: Embedding,
    index: NDArray[np.int64],
    about: Mapping[str, Any],
    say: Callable[[str], object],
) -> None:
    """The parts of the samples `index` that are not there yet."""
    units = [(number, index[start : start + PART]) for number, start in enumerate(range(0, len(index), PART))]
    kept = sum(len(some) for number, some in units if number in there)
    since, done = time.perf_counter(), 0
    for number, table in embedding.tables([unit for unit in units if unit[0] not in there]):
        parts.mkdir(parents=True, exist_ok=True)
        with whole(parts / NOTE) as partial:
            partial.write_text(json.dumps(about))
        with whole(_part(parts, number)) as partial:
            pq.write_table(table, partial, row_group_size=PART)
        done += len(table)
        if len(units) > 1:
            pace = done / (time.perf_counter() - since)
            left = (len(index) - kept - done) / pace
            say(f"{kept + done:,} of {len(index):,} embedded, {pace:.0f} images/s, {left:.0f} s left")


def embedded(
    found: TrainedEncoder, source: Source, samples: Samples, index: NDArray[np.int64], device: Any
) -> Any:
    """A table of the samples `index` (n,)."""
    from raysurl.embed import embed

    seen: dict[int, tuple[bytes | None, int, int]] = {}

    def look(which: NDArray[np.int64], images: Images) -> None:
        for sample, image in zip(which.tolist(), images, strict=True):
            seen[sample] = digest_of(image.numpy())

    features = embed(found.encoder, source, found.recipe, device, index, look=look).numpy()
    pixels, height, width = zip(*(seen[int(i)] for i in index), strict=True)
    listing = samples.listing
    return pa.table(
        {
            "index": index,
            "name": [samples.name_of(int(i)) for i in index],
            "path": [listing.path(int(i)) for i in index],
            "row": listing.row[index],
            "label": samples.original_labels()[index],
            "pixels": pa.array(pixels, pa.binary(DIGEST)),
            "height": pa.array(height, pa.int32()),
            "width": pa.array(width, pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1]),
        }
    )


def digest_of(image: NDArray[Any]) -> tuple[bytes | None, int, int]:
    """Digest, height and width of uint8 pixels (3, h, w); none of a vector. Equal digests are equal pixels."""
    if image.ndim != 3:
        return None, 0, 0
    height, width = image.shape[1:]
    made = hashlib.blake2b(f"{height}x{width}".encode(), digest_size=DIGEST)
    made.update(np.ascontiguousarray(image).data)
    return made.digest(), height, width


def joined(parts: Path, count: int, about: Mapping[str, Any], target: Path) -> int:
    """Write `target` from its parts, one at a time, each a row group; returns the values of an embedding."""
    schema = pq.read_schema(_part(parts, 0)).with_metadata({"raysurl": json.dumps(about)})
    with whole(target) as partial, pq.ParquetWriter(partial, schema) as writer:
        for number in range(count):
            table = pq.read_table(_part(parts, number))
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=PART)
    dim: int = schema.field("embedding").type.list_size
    return dim


def described(run: Path, found: TrainedEncoder, samples: Samples) -> dict[str, Any]:
    """What the embeddings are of, and which network made them."""
    from raysurl.encoder import NAME
    from raysurl.train.run_directory import commit, versions

    recipe = found.recipe
    file = run if run.is_file() else run / NAME
    encoder = recipe.encoder.model_dump(mode="json")
    model = {
        "run": found.where.name,
        "method": recipe.method.name,
        "encoder": encoder,
        "sha256": sha256(file),
    }
    return {
        "model": model | {"size": recipe.views.size, "file": str(file.absolute())},
        "data": {"name": recipe.data.name, "root": samples.listing.root},
        "commit": commit(),
        "version": versions().get("raysurl"),
    }


# -------------------------------------------------------------------- what is there already


def _made_before(target: Path, about: Mapping[str, Any], say: Callable[[str], object]) -> int:
    """Rows of a file that an earlier call finished. Raises InputError where it is of something else."""
    stored = (pq.read_schema(target).metadata or {}).get(b"raysurl", b"{}")
    if plain.mapping(stored) != json.loads(json.dumps(about)):
        raise InputError(
            f"{target} holds embeddings of another run, of other data or of another version; delete it"
        )
    say(f"the embeddings are there already: {target}")
    return int(pq.read_metadata(target).num_rows)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06}.parquet"


def _parts_there(parts: Path, about: Mapping[str, Any]) -> set[int]:
    """Numbers of the finished parts. Raises InputError for those of another model or other data."""
    if not parts.is_dir():
        return set()
    try:
        same = plain.read_mapping(parts / NOTE) == json.loads(json.dumps(about))
    except (OSError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{parts} holds unfinished embeddings of another run, of other data or of another version; delete it, or"
            " give what they began with"
        )
    return {int(p.stem) for p in parts.glob("*.parquet") if p.stem.isdigit()}


def _listed(samples: Samples) -> str:
    """A digest of which samples there are, and of the files' sizes and times."""
    made = hashlib.blake2b(digest_size=DIGEST)
    listing = samples.listing
    for path in listing.paths.to_pylist():
        made.update(str(path).encode("utf-8", "surrogateescape") + b"\0")
    for array in (listing.file, listing.row, listing.stamps):
        if array is not None:
            made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()
