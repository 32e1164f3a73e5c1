"""Requests to an ASGI application without a server, and a backend that answers in this process."""

import asyncio
import json
from dataclasses import dataclass, field
from functools import cache

import torch
from small_run import finished_index, finished_run

from raysurl.serving.answers import Ask, Reply, Row, answer
from raysurl.serving.asked import asked_for
from raysurl.serving.gate import Gate
from raysurl.serving.model import ServedModel, load_served

MAX_PIXELS = 100_000


@cache
def served(index=True) -> ServedModel:
    """The small run, with its index and its classifier."""
    asked = {"run": str(finished_run()), "port": "0"} | ({"index": str(finished_index())} if index else {})
    return load_served(asked_for(asked), torch.device("cpu"))


class Here:
    """A backend of one image at a time."""

    def __init__(self, model: ServedModel | None = None) -> None:
        self.model = model or served()

    async def answer(self, ask: Ask) -> Reply:
        async def forward(which, image):
            return Row(self.model.forward(getattr(self.model, which), [image])[0], 1)

        async def aside(work, *arguments):
            return work(*arguments)

        return await answer(self.model, ask, MAX_PIXELS, forward, aside)

    async def alive(self) -> None:
        self.model.forward(self.model.encoder, [self.model.blank()])


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes
    taken: int = 0  # messages of the body that were received
    messages: list = field(default_factory=list)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        said = self.json["error"]
        assert said == said.strip()
        assert "\n" not in said
        assert "Traceback" not in said
        return said


async def ask(
    gate: Gate, path="/embed", body=b"", *, method="POST", headers=None, parts=None, slow=0.0
) -> Answered:
    """`parts`: a body without a length, part by part; `slow`: seconds before each."""
    path, _, query = path.partition("?")
    chunks = iter(parts if parts is not None else [body])
    usual = {"host": "localhost:8000"}
    usual |= {"transfer-encoding": "chunked"} if parts is not None else {"content-length": str(len(body))}
    found = Answered(0, {}, b"")

    async def receive():
        await asyncio.sleep(slow)
        found.taken += 1
        part = next(chunks, None)
        if part is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": part, "more_body": parts is not None}

    async def send(message):
        found.messages.append(message)
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            found.body += message["body"]

    sent = {k.lower(): v for k, v in (usual | (headers or {})).items() if v is not None}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in sent.items()],
    }
    await gate(scope, receive, send)
    assert not found.messages[-1].get("more_body")
    if method != "HEAD":
        assert found.headers["content-length"] == str(len(found.body))
    return found
