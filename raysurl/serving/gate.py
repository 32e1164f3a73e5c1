"""The door of the service, an ASGI application: who may ask, what is refused, and how long anybody waits.

It holds no model: a `Backend` answers, replicas of Ray Serve or, in tests, this process. Every answer but /metrics and
an embedding of octets is JSON, one that refuses has one sentence in `error`, and no answer tells of the program.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs

from raysurl.serving.answers import Ask, Kind, Reply, as_json, refusal
from raysurl.serving.asked import Limits, is_loopback
from raysurl.serving.bodies import MULTIPART, Body, GoneError, Receive, image_in
from raysurl.serving.gauges import TEXT, Gauges
from raysurl.serving.images import RefusedError

Send = Callable[[Any], Awaitable[None]]
FRESH_S = 10.0  # an answer of the model that is no older shows that it lives
HEALTH_S = 5.0  # that it may take to show it
AGAIN = {"retry-after": "1"}
POSTS: dict[str, Kind] = {"/embed": "embed", "/neighbours": "neighbours", "/classify": "classify"}
GETS = ("/", "/health", "/metrics")
logger = logging.getLogger("raysurl.serving")


class UnavailableError(Exception):
    """The backend cannot answer now, and may soon."""


class Backend(Protocol):
    async def answer(self, ask: Ask) -> Reply:
        """Raises UnavailableError."""

    async def alive(self) -> None:
        """Returns when the model has answered. Raises UnavailableError."""


class Gate:
    """`about`: what GET / says. Until `open` it answers that the model is being loaded."""

    def __init__(self, limits: Limits, token: str | None, host: str, about: Mapping[str, Any]) -> None:
        self.limits, self.about = limits, about
        self.gauges = Gauges(limits.queue)
        self._token = token.encode() if token else None
        self._host = host.strip("[]").lower()
        self._backend: Backend | None = None
        self._inside = 0
        self._answered = float("-inf")  # when the model did so last
        self._asking: asyncio.Task[None] | None = None  # whether it lives

    def open(self, backend: Backend) -> None:
        self._backend = backend

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # uvicorn is told to ask for nothing else
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path, body = scope["path"], Body(receive, headers)
        try:
            extra, reply = {}, await self._reply(scope, headers, body)
        except RefusedError as refused:
            extra, reply = refused.headers, refusal(refused)
        except GoneError:
            return
        except Exception:  # a client must not see it, and whoever runs the service must
            logger.exception("an answer failed")
            reply = refusal(RefusedError(500, "the service failed on this request; its log says why"))
            extra = {}
        known = path.strip("/") if path in POSTS or path in GETS else "other"
        self.gauges.requests.labels(known or "root", str(reply.status)).inc()
        await self._send(send, body, reply, extra, with_body=scope["method"] != "HEAD")

    async def _reply(self, scope: Mapping[str, Any], headers: Mapping[str, str], body: Body) -> Reply:
        path, method = scope["path"], scope["method"]
        if path not in POSTS and path not in GETS:
            raise RefusedError(404, f"there is no such page; there are {', '.join([*GETS, *POSTS])}")
        self._check_host(headers)
        if path != "/health":
            self._check_token(headers)
        allowed = ("POST",) if path in POSTS else ("GET", "HEAD")
        if method not in allowed:
            raise RefusedError(405, f"{path} takes {allowed[0]} requests", {"allow": ", ".join(allowed)})
        if path == "/":
            return Reply(200, as_json(self.about))
        if path == "/metrics":
            return Reply(200, self.gauges.text(), TEXT)
        if path == "/health":
            return await self._health()
        return await self._posted(POSTS[path], scope, headers, body)

    # ---------------------------------------------------------------- who may ask

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Without a token, a page of the web that has given its own name this address must not read the answers."""
        host = headers.get("host")
        if self._token is not None or host is None:
            return
        name = host.rpartition(":")[0] if host[-1:] != "]" and ":" in host else host
        name = name.strip("[]").lower()
        if not (name == self._host or is_loopback(name)):
            raise RefusedError(
                403, "the service answers to localhost alone; start it with a token to use another name"
            )

    def _check_token(self, headers: Mapping[str, str]) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
        if scheme.lower() != "bearer" or not same:
            raise RefusedError(
                401,
                "send the token of the service: Authorization: Bearer TOKEN",
                {"www-authenticate": "Bearer"},
            )

    # ---------------------------------------------------------------- images

    async def _posted(
        self, kind: Kind, scope: Mapping[str, Any], headers: Mapping[str, str], body: Body
    ) -> Reply:
        if self._backend is None:
            raise RefusedError(503, "the model is being loaded", AGAIN)
        many = _many(kind, scope["query_string"])
        if self._inside >= self.limits.queue:
            raise RefusedError(503, f"{self.limits.queue} requests are being answered; try again soon", AGAIN)
        since = time.perf_counter()
        self._inside += 1
        self.gauges.waiting.set(self._inside)
        try:
            image = await self._image(headers, body)
            octets = "application/octet-stream" in headers.get("accept", "")
            reply = await self._asked(self._backend, Ask(kind, image, many, octets))
        finally:
            self._inside -= 1
            self.gauges.waiting.set(self._inside)
        if reply.status == 200:  # else the network was not asked
            self._answered = time.monotonic()
        self.gauges.seconds.labels(kind).observe(time.perf_counter() - since)
        if reply.batch:
            self.gauges.batch.observe(reply.batch)
        if reply.replica:
            self.gauges.resident.labels(reply.replica).set(reply.resident)
        return reply

    async def _image(self, headers: Mapping[str, str], body: Body) -> bytes:
        kind, most = headers.get("content-type", ""), self.limits.max_bytes
        form = kind.lower().startswith("multipart/")
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                whole = await body.read(most + MULTIPART if form else most)
        except TimeoutError:
            raise RefusedError(
                408, f"the body did not come within {self.limits.timeout_s:g} s (timeout_s=)"
            ) from None
        return image_in(whole, kind, most)

    async def _asked(self, backend: Backend, ask: Ask) -> Reply:
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await backend.answer(ask)
        except TimeoutError:
            said = f"the model did not answer within {self.limits.timeout_s:g} s (timeout_s=)"
            raise RefusedError(504, said, AGAIN) from None
        except UnavailableError:
            raise RefusedError(503, "the model cannot answer now; try again soon", AGAIN) from None

    # ---------------------------------------------------------------- health

    async def _health(self) -> Reply:
        """200 where the model has just answered, or does so now; many who ask make it answer once."""
        if self._backend is None:
            raise RefusedError(503, "the model is being loaded", AGAIN)
        if time.monotonic() - self._answered > FRESH_S:
            if self._asking is None:
                self._asking = asyncio.create_task(self._lives(self._backend))
            try:
                await asyncio.shield(self._asking)
            except (TimeoutError, UnavailableError):
                raise RefusedError(503, "the model does not answer", AGAIN) from None
        return Reply(200, as_json({"status": "ok"}))

    async def _lives(self, backend: Backend) -> None:
        try:
            async with asyncio.timeout(HEALTH_S):
                await backend.alive()
            self._answered = time.monotonic()
        finally:
            self._asking = None

    # ---------------------------------------------------------------- answers

    async def _send(
        self, send: Send, body: Body, reply: Reply, extra: Mapping[str, str], *, with_body: bool
    ) -> None:
        """What a client that was refused still sends is let go, or it would not hear the answer; then it is left."""
        headers = {
            "content-type": reply.kind,
            "content-length": str(len(reply.body)),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **extra,
        }
        if unread := body.to_come:
            headers["connection"] = "close"
        pairs = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
        content = reply.body if with_body else b""
        if unread:
            await send({"type": "http.response.body", "body": content, "more_body": True})
            await body.drain(self.limits.max_bytes)
            content = b""
        await send({"type": "http.response.body", "body": content})


def _many(kind: Kind, query: bytes) -> int:
    """`k=` of neighbours or `top=` of classes. Raises RefusedError (400)."""
    key, default = ("top", 5) if kind == "classify" else ("k", 10)
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20).get(
        key, [str(default)]
    )
    text = given[-1]
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) >= 1):
        raise RefusedError(400, f"{key}= must be a whole number, 1 or more, {default} for example")
    return int(text)


def described(about: Mapping[str, Any], limits: Limits, missing: Mapping[str, str]) -> dict[str, Any]:
    """What GET / says: the model, its pages, and the limits. `missing`: page -> why it is not there."""
    pages = {
        "/embed": "POST an image: its embedding; Accept: application/octet-stream gives float32, little-endian",
        "/neighbours": "POST an image: the k= nearest of the index",
        "/classify": "POST an image: the top= most likely classes",
        "/health": "200 when the model answers",
        "/metrics": "for Prometheus",
    }
    return {
        "program": "raysurl",
        "model": dict(about),
        "pages": {path: missing.get(path, said) for path, said in pages.items()},
        "limits": {
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
            "queue": limits.queue,
            "timeout_s": limits.timeout_s,
        },
    }
