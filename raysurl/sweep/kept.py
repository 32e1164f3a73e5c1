"""Sweeps that are kept as CSV files, NAME.csv of space NAME as `raysurl.sweep.tables.to_csv` writes it, read again.

Files of before the values of single seeds were kept hold means and deviations; their scale and commit stand in the
Markdown file beside them.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysurl.errors import InputError
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep.cells import cells
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.plan import SweepRequest, with_objective
from raysurl.sweep.results import CellResult, Made, Sweep, read_sweep
from raysurl.sweep.space import SPACES, Space, at_scale, read_space
from raysurl.sweep.trial import EARLY, Outcome

Row = Mapping[str, str]
NEEDED = ("mean", "std", "seeds", "seconds")
LARGEST = 2**24  # bytes of a file


def read_folder(folder: Path) -> list[Sweep]:
    """The sweeps of a folder: its CSV files, and the sweep directories in it; or the one sweep directory that it is.

    Raises InputError where there is none, or one cannot be read.
    """
    try:
        if (folder / sweep_directory.FILE).is_file():
            return [read_sweep(folder)]
        files = sorted(folder.glob("*.csv"))
        directories = sorted(path.parent for path in folder.glob(f"*/{sweep_directory.FILE}"))
    except OSError as error:
        raise InputError(f"results={folder} cannot be read: {error.strerror}") from None
    if not files and not directories:
        what = "holds no CSV file and no sweep directory" if folder.is_dir() else "is no folder"
        raise InputError(
            f"results={folder} {what}; name a folder of what sweeps wrote, table.csv as SPACE.csv or whole directories"
        )
    return [*map(read_csv, files), *map(read_sweep, directories)]


def read_csv(path: Path) -> Sweep:
    """A kept table as the sweep that it was: cells in the order of the space, those that it lacks as not run.

    Raises InputError where the file is no such table.
    """
    name, _, named = path.stem.partition("-")
    if not (SPACES / f"{name}.yaml").is_file():
        raise InputError(
            f"{path} is named after no space of search_spaces/; call a table of a sweep SPACE.csv or SPACE-SCALE.csv,"
            " for example ressl_table2.csv"
        )
    published = read_space(name)
    rows = _rows(path, published)
    said = {row.get("scale") or named or _beside(path, r"at scale=(\w+)\b") for _, row in rows}
    if len(said) > 1:
        raise InputError(
            f"{path} holds cells of scale={' and of scale='.join(sorted(map(str, said)))}; keep each in a file"
        )
    scale = said.pop() or published.usual_scale
    if scale != "full" and not published.small(scale):
        raise InputError(f"{path}: scale={scale} is none of space {published.name}")
    space = scaled(published, scale)
    found = {labels: _cell(path, space, labels, row) for labels, row in rows}
    if len(found) < len(rows):
        raise InputError(f"{path} holds a cell twice; keep one table in a file")
    if space.search == "grid":
        found = {entry.labels: entry for entry in unrun(space)} | found
    paper = paper_numbers(published) if published.search == "grid" else {}
    entries = tuple(replace(entry, paper=paper.get(labels)) for labels, entry in found.items())
    trials = tuple(
        (f"{i}-{k}", {"labels": dict(zip(space.axes, e.labels, strict=True)), "seed": None}, outcome)
        for i, e in enumerate(entries)
        for k, outcome in enumerate(e.outcomes)
    )
    made = _made(path, rows[0][1])
    of_seeds = all(row.get("values") or not int(row["seeds"]) for _, row in rows)
    return Sweep(path.parent, space, scale, published.stands_in(scale), entries, trials, (), made, of_seeds)


def never_run(published: Space) -> Sweep:
    """A table of which nothing was run, at the paper's size."""
    space = scaled(published, "full")
    paper = paper_numbers(published)
    entries = tuple(replace(entry, paper=paper.get(entry.labels)) for entry in unrun(space))
    return Sweep(Path(), space, "full", "", entries, (), ())


def scaled(published: Space, scale: str) -> Space:
    """The space at a scale, with the metric that it is judged by, which alone is known of a kept table."""
    space = with_objective(SweepRequest(published, scale), at_scale(published, scale)[0])
    return space.model_copy(update={"shown": {}})


def unrun(space: Space) -> list[CellResult]:
    return [CellResult(c.key, space.metric_of(c.key), (), 0) for c in cells(space)]


# -------------------------------------------------------------------- of a file


def _rows(path: Path, published: Space) -> list[tuple[tuple[str, ...], Row]]:
    """Labels of each line, and its other columns. Raises InputError."""
    axes = list(published.axes)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any table of a sweep")
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be read as a table: {why}") from None
    others = head[len(axes) :]
    if head[: len(axes)] != axes or not set(NEEDED) <= set(others):
        wanted = ", ".join([*axes, *NEEDED])
        raise InputError(
            f"{path} is no table of space {published.name}, whose columns are {wanted} and others"
        )
    if len(set(others)) < len(others):
        raise InputError(f"{path} has a column twice")
    if not lines:
        raise InputError(f"{path} holds no cell of space {published.name}")
    for number, line in enumerate(lines, 2):
        if len(line) != len(head):
            raise InputError(f"{path}, line {number} has {len(line)} columns, and its head {len(head)}")
    return [(tuple(line[: len(axes)]), dict(zip(others, line[len(axes) :], strict=True))) for line in lines]


def _cell(path: Path, space: Space, labels: tuple[str, ...], row: Row) -> CellResult:
    """The cell of a line; its outcomes share its seconds."""
    where, metric = f"{path}, {', '.join(labels)}", row.get("metric") or space.metric_of(labels)
    seeds, ended = _count(where, row, "seeds"), [(s, _count(where, row, s)) for s in EARLY]
    seconds = _number(where, row, "seconds") or 0.0
    each, epoch = seconds / max(seeds + sum(n for _, n in ended), 1), _number(where, row, "epoch_s")
    values = [_as_number(where, "values", text) for text in row.get("values", "").split()]
    if not values and seeds:
        values = alike(_number(where, row, "mean"), _number(where, row, "std"), seeds)
    if len(values) != seeds:
        raise InputError(f"{where}: there are {len(values)} values of {seeds} seeds")
    outcomes = [Outcome("finished", "", {metric: v}, each, epoch_s=epoch) for v in values]
    outcomes += [Outcome(state, "", {}, each) for state, number in ended for _ in range(number)]
    return CellResult(labels, metric, tuple(outcomes), len(outcomes), None, row.get("not_run", ""))


def alike(mean: float | None, deviation: float | None, count: int) -> list[float]:
    """As many values that have this mean and standard deviation (of a sample): all that an interval asks of them."""
    if mean is None or (deviation is None and count > 1):
        return []
    off = (deviation or 0.0) * math.sqrt((count - 1) / 2)
    return [mean - off, mean + off, *[mean] * (count - 2)][:count] if count > 1 else [mean]


def _number(where: str, row: Row, column: str) -> float | None:
    return _as_number(where, column, row[column]) if row.get(column) else None


def _as_number(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column}={text} is no number")
    return value


def _count(where: str, row: Row, column: str) -> int:
    value = _number(where, row, column) or 0.0
    if value < 0 or value != int(value) or value > 1000:
        raise InputError(f"{where}: {column}={row[column]} is no number of runs")
    return int(value)


def _made(path: Path, row: Row) -> Made:
    commits = row.get("commit") or (_beside(path, r"^Code at (.+?)\.\s*$") or "").replace(",", " ")
    return Made(
        tuple(int(s) for s in row.get("of_seeds", "").split() if s.isascii() and s.isdigit()),
        tuple(commits.split()),
        tuple(name for name in row.get("hardware", "").split("; ") if name),
        tuple(int(s) for s in row.get("threads", "").split() if s.isascii() and s.isdigit()),
    )


def _beside(path: Path, what: str) -> str | None:
    """What the Markdown file beside a table says; None where there is none, or it does not."""
    page = path.with_suffix(".md")
    try:
        text: Any = page.read_text(encoding="utf-8") if page.is_file() else ""
    except (OSError, ValueError):
        return None
    found = re.search(what, text, re.MULTILINE)
    return found[1] if found else None
