"""What the commands of curation are given, checked before anything is opened, and the folder that they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysurl.errors import InputError
from raysurl.paths import place, whole, writable

if TYPE_CHECKING:
    from raysurl.curation.rows import Embeddings

EMBEDDINGS = "embeddings.parquet"
BUILDING = ".building"  # unfinished work of an index


def new_folder(given: str | None, *, holds: tuple[str, ...] = (EMBEDDINGS,)) -> Path:
    """The folder to write. Raises InputError for one with anything in it but what an interrupted call left."""
    if not given:
        raise InputError("name the folder to write: output=DIR")
    target = place("output", given)
    if os.path.lexists(target):
        left = {BUILDING, *holds, *(f".{name}.parts" for name in holds)}
        if not target.is_dir() or {p.name for p in target.iterdir()} - left:
            raise InputError(f"output={target} exists already; name another output=")
        return target
    return writable("output", target)


def source_of(mine: Mapping[str, str], rest: Mapping[str, str], key: str = "embeddings") -> str | None:
    """The embeddings file that was named, or None where `run=` says what to embed. Raises InputError for neither."""
    named = mine.get(key)
    if named and (rest or mine.get("run")):
        other = next(iter(rest), "run")
        raise InputError(
            f"{other}= is of a run that embeds, and {key}= names embeddings that are there; leave one of them out"
        )
    if not named and not mine.get("run"):
        raise InputError(
            f"name what to use: {key}=FILE.parquet, as `raysurl embed` writes it, or run=DIR and the data to embed"
        )
    return named


def taken_up(named: str | None, mine: Mapping[str, str], rest: Mapping[str, str], folder: Path) -> Path:
    """The file of embeddings: the one that was named, or one in `folder` that is made here, if it is not yet there."""
    from raysurl.curation.embedding import write_embeddings
    from raysurl.recipe import of_one_set

    if named is not None:
        return Path(named)
    target = folder / EMBEDDINGS
    write_embeddings({**of_one_set(rest), "run": mine["run"]}, target)
    return target


def read(named: str | None, mine: Mapping[str, str], rest: Mapping[str, str], folder: Path) -> Embeddings:
    from raysurl.curation.rows import read_embeddings

    return read_embeddings(str(taken_up(named, mine, rest, folder)))


# -------------------------------------------------------------------- values


def number(
    mine: Mapping[str, str], key: str, default: float, valid: str, fits: Callable[[float], bool]
) -> float:
    """A number among the arguments. Raises InputError for anything else, and where it does not fit."""
    text = mine.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise InputError(f"{key}={text} must be {valid}, {default:g} for example")
    return value


def count(mine: Mapping[str, str], key: str, default: int, least: int = 1) -> int:
    """A whole number among the arguments, `least` or more."""
    text = mine.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise InputError(f"{key}={text} must be a whole number, {least} or more, {default} for example")
    return int(text)


def choice(mine: Mapping[str, str], key: str, valid: tuple[str, ...]) -> str:
    """One of some words, by default the first."""
    value = mine.get(key, valid[0])
    if value not in valid:
        raise InputError(f"{key}={value} is not known; choose one of {', '.join(valid)}")
    return value


def flag(mine: Mapping[str, str], key: str, default: bool) -> bool:
    words = ("true", "false") if default else ("false", "true")
    return choice(mine, key, words) == "true"


# -------------------------------------------------------------------- lists


def write_list(table: Any, folder: Path, name: str) -> None:
    """One table as NAME.csv, NAME.parquet and NAME.json (a list of objects), each whole or not there."""
    import json

    import pyarrow.csv
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / f"{name}.csv") as partial, partial.open("wb") as file:
        pyarrow.csv.write_csv(table, file)
    with whole(folder / f"{name}.parquet") as partial:
        pq.write_table(table, partial)
    with whole(folder / f"{name}.json") as partial, partial.open("w", encoding="utf-8") as text:
        text.write("[")
        for start in range(0, len(table), 65536):
            for i, row in enumerate(table.slice(start, 65536).to_pylist()):
                text.write((",\n" if start + i else "\n") + json.dumps(row, ensure_ascii=False))
        text.write("\n]\n")


def write_names(names: list[str], folder: Path, file: str) -> list[str]:
    """A name per line, for `xargs -d '\\n'`; returns a sentence where some were left out, for they hold an end of a
    line."""
    plain = [name for name in names if "\n" not in name]
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / file) as partial:
        partial.write_text("".join(f"{name}\n" for name in plain), encoding="utf-8")
    left_out = len(names) - len(plain)
    return [f"{left_out} names with a line break are in the tables alone, not in {file}"] if left_out else []
