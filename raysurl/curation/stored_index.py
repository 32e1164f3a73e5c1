"""An index in a folder: `index.faiss`, `rows.parquet` (what each row is of), `index.json`, and the encoder, where it is
at hand, so that images can be looked up.

Letters: Q queries, k neighbours.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysurl import plain
from raysurl.curation.given import BUILDING
from raysurl.curation.indexing import BuiltIndex, Kind, build, kind_for, write_whole
from raysurl.curation.rows import Rows, StoredRows, batches, model_of, opened
from raysurl.errors import InputError
from raysurl.paths import given_path, sha256, whole

INDEX, ROWS, ABOUT, ENCODER = "index.faiss", "rows.parquet", "index.json", "encoder.safetensors"


def build_index(
    embeddings: str, folder: Path, kind: str = "auto", *, recall: float = 0.95, seed: int = 0
) -> BuiltIndex:
    """Write the index of an embeddings file into `folder`; a call that was interrupted goes on.

    `kind`: flat, ivf, pq, or auto, by size (`kind_for`). `recall`: that which the number of visited cells aims at.
    Raises InputError for a file that holds no embeddings, too few rows, or a folder that holds something else.
    """
    rows = StoredRows(embeddings)
    if len(rows) < 2:
        raise InputError(f"embeddings={rows.path} holds one row; an index needs two or more")
    chosen: Kind = kind_for(len(rows), rows.dim) if kind == "auto" else kind  # type: ignore[assignment]
    work = folder / BUILDING
    state = rows.path.stat()
    note = {"embeddings": str(rows.path), "bytes": state.st_size, "time": state.st_mtime_ns}
    note |= {"kind": chosen, "seed": seed, "rows": len(rows), "dim": rows.dim}
    _same_work(work, note)
    work.mkdir(parents=True, exist_ok=True)
    (work / ABOUT).write_text(json.dumps(note))
    index, measured = build(rows, chosen, recall=recall, seed=seed, folder=work)
    write_whole(index, folder / INDEX)
    _write_rows(rows, folder / ROWS)
    kept = _keep_encoder(rows.about, folder)
    about = {**asdict(measured), "of": rows.about, "embeddings": str(rows.path), "encoder": kept}
    with whole(folder / ABOUT) as partial:
        partial.write_text(json.dumps(about, indent=1))
    shutil.rmtree(work)
    return measured


def _same_work(work: Path, note: dict[str, Any]) -> None:
    if not work.is_dir():
        return
    try:
        same = plain.read_mapping(work / ABOUT) == note
    except (OSError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"output={work.parent} holds an unfinished index of other embeddings or another kind; delete it, or give"
            " what it began with"
        )


def _write_rows(rows: StoredRows, target: Path) -> None:
    """What each row is of, without the embeddings."""
    file, about = opened(rows.path, rows.key)
    columns = [name for name in file.schema_arrow.names if name != "embedding"]
    schema = pa.schema([file.schema_arrow.field(name) for name in columns], {"raysurl": json.dumps(about)})
    with file, whole(target) as partial, pq.ParquetWriter(partial, schema) as writer:
        for _, batch in batches(file, rows.path, rows.key, columns):
            writer.write_batch(batch.select(columns).cast(schema))


def _keep_encoder(about: dict[str, Any], folder: Path) -> bool:
    """The encoder that made the embeddings travels with the index, if it is still where it was, and the same."""
    model = about.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("file"), str):
        return False
    file = Path(model["file"])
    try:
        if sha256(file) != model.get("sha256"):
            return False
        with whole(folder / ENCODER) as partial:
            shutil.copyfile(file, partial)
    except OSError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """An index that was built: `search` finds rows, `table` says what they are of."""

    folder: Path
    index: Any
    table: Any
    about: dict[str, Any]

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        return int(self.index.d)

    @property
    def model(self) -> str:
        """The digest of the network whose embeddings these are; empty where it is not known."""
        return model_of(self.about["of"])

    def search(self, queries: Rows, k: int) -> tuple[Rows, NDArray[np.int64]]:
        """Cosines and row numbers (Q, k), the nearest first; −1 where the visited cells hold fewer than k rows."""
        cosine, index = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        return cosine, index


def open_index(given: str) -> StoredIndex:
    """The index of a folder that `raysurl index` wrote. Raises InputError for anything else."""
    folder = given_path("index", given).absolute()
    try:
        about = plain.read_mapping(folder / ABOUT)
        table = pq.read_table(folder / ROWS)
        index: Any = faiss.read_index(str(folder / INDEX))
        if about["kind"] != "flat":
            index.nprobe = int(about["visited"])
        fits = index.ntotal == len(table) == about["rows"] and index.d == about["dim"]
        if not fits or not isinstance(about["of"], dict) or "name" not in table.column_names:
            raise ValueError("its parts do not fit each other")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, pa.ArrowException):
        why = "is not there" if not folder.exists() else "is not an index, or not a whole one"
        raise InputError(f"index={folder} {why}; make one with `raysurl index`") from None
    return StoredIndex(folder, index, table, about)
