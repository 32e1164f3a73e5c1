"""Metrics as a person sees them in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from raysurl.report.terminal import MetricTable, gained, tables

Intervals = Mapping[str, Sequence[float]]


class MetricsTable(Mapping[str, float]):
    """Metrics by name, `table["eval/knn_top1"]`, shown as a table with intervals and baselines.

    `intervals`: name -> (low, high) of 95 %. `gains`: name -> baseline -> (points, low, high). `notes`: sentences.
    """

    def __init__(
        self,
        title: str,
        metrics: Mapping[str, float],
        intervals: Intervals | None = None,
        gains: Mapping[str, Intervals] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.title, self._metrics = title, dict(metrics)
        self.intervals, self.gains, self.notes = dict(intervals or {}), dict(gains or {}), tuple(notes)

    def __getitem__(self, name: str) -> float:
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    def __repr__(self) -> str:
        shown = [text_table(table.head, table.rows) for table in self._tables()]
        return "\n".join([self.title, *shown, *self._said()])

    def _repr_html_(self) -> str:
        said = "".join(f"<div>{escape(sentence)}</div>" for sentence in self._said())
        shown = "".join(html_table(table.head, table.rows) for table in self._tables())
        return f"<b>{escape(self.title)}</b>{shown}{said}"

    def _said(self) -> list[str]:
        return [*gained(self.gains), *self.notes]

    def _tables(self) -> list[MetricTable]:
        return tables(self._metrics, self.intervals)


def text_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *lines)
    )


def html_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    named = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{named}</tr>{body}</table>"
