"""What is asked of a replica and what it answers. A replica's work is here; how images meet in a batch is not."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysurl.data.decode import Array
from raysurl.errors import InputError
from raysurl.serving.images import RefusedError, check
from raysurl.serving.model import NO_INDEX, Fed, ServedModel

Kind = Literal["embed", "neighbours", "classify"]
JSON, OCTETS = "application/json", "application/octet-stream"
MOST_NEIGHBOURS = 1000


@dataclass(frozen=True)
class Ask:
    """One image. `many`: neighbours, or classes, that are wanted. `octets`: an embedding as float32, little-endian."""

    kind: Kind
    image: bytes
    many: int = 10
    octets: bool = False


class Row(NamedTuple):
    """What the network gives for one image, and the size of its batch; 0 where another of the batch says it."""

    values: NDArray[np.float32]
    batch: int


class Reply(NamedTuple):
    """Of one request. `batch`: as of Row. `replica`, `resident`: who answered, and bytes of its memory."""

    status: int
    body: bytes
    kind: str = JSON
    batch: int = 0
    replica: str = ""
    resident: int = 0


Aside = Callable[..., Awaitable[Any]]  # calls a function with arguments in a thread
Forward = Callable[[str, Array], Awaitable[Row]]  # by "encoder" or "classifier"


async def answer(model: ServedModel, ask: Ask, max_pixels: int, forward: Forward, aside: Aside) -> Reply:
    """Decode in a thread, go through the network in a batch, and put the answer into words in a thread."""
    try:
        fed = _asked_of(model, ask)
        image = await aside(_decoded, model, fed, ask.image, max_pixels)
    except RefusedError as refused:
        return refusal(refused)
    row = await forward("classifier" if ask.kind == "classify" else "encoder", image)
    try:
        body = await aside(_in_words, model, ask, row.values)
    except InputError as error:
        return refusal(RefusedError(400, str(error)))._replace(batch=row.batch)
    return Reply(200, body, OCTETS if ask.kind == "embed" and ask.octets else JSON, row.batch)


def _asked_of(model: ServedModel, ask: Ask) -> Fed:
    """The network that answers. Raises RefusedError (404) where there is none, or (400) for too much."""
    if ask.kind == "classify":
        if model.classifier is None:
            raise RefusedError(404, model.why_no_classes)
        return model.classifier
    if ask.kind == "neighbours":
        if model.index is None:
            raise RefusedError(404, NO_INDEX)
        if ask.many > (most := min(len(model.index), MOST_NEIGHBOURS)):
            raise RefusedError(400, f"k={ask.many} is more than the {most} neighbours that can be asked for")
    return model.encoder


def _decoded(model: ServedModel, fed: Fed, image: bytes, max_pixels: int) -> Array:
    check(image, max_pixels)
    return model.prepared(image, fed)


def _in_words(model: ServedModel, ask: Ask, values: NDArray[np.float32]) -> bytes:
    if ask.kind == "embed":
        if ask.octets:
            return values.astype("<f4").tobytes()
        return as_json({"dim": len(values), "embedding": values.tolist()})
    if ask.kind == "neighbours":
        return as_json({"neighbours": model.neighbours(values, ask.many)})
    found = model.most_likely(values, ask.many)
    return as_json({**found[0], "classes": found})


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def refusal(refused: RefusedError) -> Reply:
    return Reply(refused.status, as_json({"error": refused.sentence}))


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
