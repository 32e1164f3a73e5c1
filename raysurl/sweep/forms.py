"""The forms of what a sweep directory holds as JSON, by which a damaged file is told from a whole one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class StoredCell(BaseModel):
    labels: list[str]
    ids: list[str]
    why: str = ""


class PaperNumber(BaseModel):
    labels: list[str]
    value: float


class Start(BaseModel):
    time: float
    commit: str | None


class Name(BaseModel):
    name: str


class Identity(BaseModel):
    scale: str
    overrides: dict[str, Any]
    space: Name


class StoredSweep(BaseModel):
    """sweep.json, see `raysurl.sweep.directory.describe`."""

    identity: Identity
    space: dict[str, Any]
    published: dict[str, Any]
    stands_in: str
    cells: list[StoredCell]
    paper: list[PaperNumber]
    starts: list[Start]


class StoredTrial(BaseModel):
    """cell.json of a trial, see `raysurl.sweep.directory.remember`."""

    labels: dict[str, str]
    seed: int
    values: dict[str, Any] | None
