"""The HTTP server around the gate: uvicorn in a thread, so that the main one hears of signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from raysurl import stopping
from raysurl.serving.gate import Gate

HEAD_S = 20.0  # that a connection may take to bring the head of a request
MOST_CONNECTIONS = 4  # for each request that may be inside


def protocol() -> type[Any]:
    """uvicorn's, the fast one where it is installed, which also leaves who never ends the head of a request."""
    base: Any = _base()

    class Patient(base):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            if self._idle():
                self._expect_head()
            super().data_received(data)
            if not self._idle():
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or bool(self.cycle.response_complete)

        def _expect_head(self) -> None:
            if self._late is None:
                self._late = asyncio.get_running_loop().call_later(HEAD_S, self._leave)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _leave(self) -> None:
            self._late = None
            if self._idle():
                self.transport.close()

    return Patient


def _base() -> type[Any]:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return H11Protocol
    return HttpToolsProtocol


class Listener:
    def __init__(self, gate: Gate, listening: socket.socket, drain_s: float) -> None:
        config = uvicorn.Config(
            gate,
            http=protocol(),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=int(drain_s) + 1,
            limit_concurrency=MOST_CONNECTIONS * gate.limits.queue,
        )
        self._server, self._socket, self._drain_s = uvicorn.Server(config), listening, drain_s
        self._thread = threading.Thread(target=self._run, daemon=True, name="raysurl-http")

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    @contextlib.contextmanager
    def drained(self) -> Iterator[None]:
        """At the end of this block nothing new is taken, and what is inside has been answered, or has had its time."""
        try:
            yield
        finally:
            with stopping.held():
                self._server.should_exit = True
                self._thread.join(self._drain_s + 2)


@contextlib.contextmanager
def listening(gate: Gate, where: socket.socket, drain_s: float) -> Iterator[Listener]:
    """The gate answers in this block, if only that the model is being loaded."""
    listener = Listener(gate, where, drain_s)
    with listener.drained():
        listener.start()
        yield listener
