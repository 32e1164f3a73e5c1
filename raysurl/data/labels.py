"""Labels of any type → 0 … C−1, once for a data set, with what people call the classes kept beside.

Numbers are mapped too: product, taxon and landmark numbers have gaps, and no cost may follow the largest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysurl.errors import InputError

Ids = NDArray[np.int64]
Names = tuple[str, ...]

MOST_CLASSES = 2**20


@dataclass(frozen=True)
class Classes:
    """What 0 … C−1 mean in a training set: `names`, where its labels are text, else its numbers `values`."""

    names: Names | None
    values: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Labels:
    """`ids` (N,) int64 in 0 … C−1, −1 = none; `names` (C,), where known; `values` (C,) where these are not 0 … C−1.

    `text`: the data name the classes and do not number them. `note`: a remark for the log.
    """

    ids: Ids
    names: Names | None = None
    values: tuple[int, ...] | None = None
    text: bool = False
    note: str = ""


def classes_of(
    ids: Ids | None, names: Names | None, values: tuple[int, ...] | None, text: bool
) -> Classes | None:
    """By what a test set is to be numbered; None where the training set has no labels. See `Labels`."""
    if ids is None:
        return None
    if text:
        return Classes(names or ())
    return Classes(None, tuple(range(int(ids.max(initial=-1)) + 1)) if values is None else values)


def number(
    parts: Sequence[tuple[str, Any]], known: Classes | None, where: str, names: Names | None = None
) -> Labels:
    """Labels (where they stand, array) as one. `names`: by number, as Hugging Face data sets keep them.

    Text is numbered by sorted name, numbers by size, or both as `known`, the training set's; a number that is new in
    a test set comes behind. Raises InputError for other types, for text beside numbers, for a new name, and for more
    classes than MOST_CLASSES.
    """
    columns = [(at, _plain(at, values)) for at, values in parts]
    text = next((at for at, column in columns if pa.types.is_large_string(column.type)), None)
    numbers = next((at for at, column in columns if pa.types.is_int64(column.type)), None)
    if text is not None and numbers is not None:
        raise InputError(
            f"{where}: the labels of {text} are text and those of {numbers} numbers; give one kind"
        )
    kind = pa.int64() if text is None else pa.large_string()
    joined = pa.chunked_array([column.cast(kind) for _, column in columns], kind)
    labels = _of_text(joined, known, where) if text is not None else _of_numbers(joined, known, where, names)
    without = int((labels.ids < 0).sum())
    if not 0 < without < len(labels.ids):
        return labels
    how = "empty" if text is not None else "missing or negative"
    remark = f"{without:,} of {len(labels.ids):,} labels are {how} and count as none"
    return replace(labels, note="; ".join(filter(None, [remark, labels.note])))


def _plain(where: str, values: Any) -> Any:
    """An array of large_string, int64, or null."""
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else _of_numpy(where, values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    try:
        column.validate(full=True)
        if pa.types.is_dictionary(kind):
            return _plain(where, column.dictionary_decode())
        if pa.types.is_null(kind) or pa.types.is_int64(kind) or pa.types.is_large_string(kind):
            return column
        if pa.types.is_string(kind) or pa.types.is_string_view(kind):
            return column.cast(pa.large_string())
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            return column.cast(pa.large_binary()).cast(pa.large_string())
        if pa.types.is_floating(kind):  # pandas makes these of whole numbers when one is missing
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return column.cast(pa.int64())
        if pa.types.is_decimal(kind):
            return column.cast(pa.int64())
    except pa.ArrowException:
        pass
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
    some = ", some of them no whole numbers of 64 bits" if any(are(kind) for are in numbers) else ""
    raise InputError(f"{where}: labels of type {kind}{some}; valid are integers or text")


def _of_numpy(where: str, values: NDArray[Any]) -> Any:
    try:
        return pa.array(values.astype(values.dtype.newbyteorder("=")), from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError):
        raise InputError(f"{where}: labels of type {values.dtype}; valid are integers or text") from None


def _of_text(column: Any, known: Classes | None, where: str) -> Labels:
    there = sorted(name for name in pc.unique(column).to_pylist() if name is not None)
    if known is not None and known.names is None and there:
        raise InputError(f"{where}: its labels are text and those of the training set are numbers")
    names = tuple(there) if known is None else known.names or ()
    of_name = set(names)
    if unknown := [name for name in there if name not in of_name]:
        raise InputError(f"{where}: the class {unknown[0]!r} is not one of the training set's {len(names)}")
    _check_count(len(names), where)
    ids = pc.index_in(column, pa.array(names, pa.large_string())).cast(pa.int64()).fill_null(-1)
    return Labels(np.asarray(ids.to_numpy(), np.int64), names, text=True)


def _of_numbers(column: Any, known: Classes | None, where: str, names: Names | None) -> Labels:
    numbers = np.array(column.fill_null(-1).to_numpy(), np.int64)
    there = np.unique(numbers[numbers >= 0])
    if known is not None and known.names is not None and len(there):
        raise InputError(f"{where}: its labels are numbers and those of the training set are text")
    values = np.array(known.values if known else (), np.int64)
    new = np.setdiff1d(there, values)
    values = np.concatenate([values, new])
    _check_count(len(values), where)
    note = ""
    if known and len(new):
        note = f"{len(new):,} classes of the test set are not in the training set, first {new[0]}"
    if np.array_equal(values, np.arange(len(values))):
        return Labels(np.maximum(numbers, -1), names, note=note)
    order = np.argsort(values)
    place = np.searchsorted(values[order], numbers).clip(0, max(len(values) - 1, 0))
    ids = np.where(numbers < 0, -1, order[place])
    called = tuple(names[value] if names and value < len(names) else str(value) for value in map(int, values))
    return Labels(ids.astype(np.int64), called, tuple(map(int, values)), note=note)


def _check_count(count: int, where: str) -> None:
    if count > MOST_CLASSES:
        raise InputError(f"{where}: {count:,} classes; at most {MOST_CLASSES:,} are told apart")
