"""The body of a request, read within its limits, and the image in it: ASGI's messages in, bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from raysurl.serving.images import RefusedError

Receive = Callable[[], Awaitable[Any]]

# curl names the last of these where nobody names a type
RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")
LEAVE_S = 2.0  # for what a refused client still sends, so that it hears the answer
MULTIPART = 64_000  # bytes of boundaries and headers that a form may have beside its image


class GoneError(Exception):
    """The client has closed the connection."""


class Body:
    """What is still to come of a request's body."""

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self.ended = False
        self.length = headers.get("content-length", "0")
        self._chunked = "transfer-encoding" in headers

    @property
    def to_come(self) -> bool:
        """Whether the client may be sending some of it still."""
        return not self.ended and (self._chunked or self.length != "0")

    async def read(self, most: int) -> bytes:
        """The whole body. Raises RefusedError (413) as soon as it is longer than `most`, whatever its head says."""
        if self.length.isascii() and self.length.isdecimal() and int(self.length[:20]) > most:
            raise RefusedError(413, self._too_long(most))
        parts, size = [], 0
        while not self.ended:
            part = await self._next()
            size += len(part)
            if size > most:
                raise RefusedError(413, self._too_long(most))
            parts.append(part)
        return b"".join(parts)

    async def drain(self, most: int) -> None:
        """Let go what still comes, `most` bytes at most and not for long."""
        try:
            async with asyncio.timeout(LEAVE_S):
                size = 0
                while not self.ended and size <= most:
                    size += len(await self._next())
        except (TimeoutError, GoneError):
            pass

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise GoneError
        self.ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    @staticmethod
    def _too_long(most: int) -> str:
        return f"the body is longer than the {most:,} bytes that are taken (max_bytes=)"


def image_in(body: bytes, content_type: str, max_bytes: int) -> bytes:
    """The image of a body of a type: the body itself, or the one file of a form.

    Raises RefusedError: 415 for a type of something else, 400 for a form that is none or has not one file.
    """
    try:
        kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    except Exception:  # whatever it is, it names no type
        kind, options = b"?", {}
    name = kind.decode("latin-1").lower()
    if name == "multipart/form-data":
        body = _file_of(body, options.get(b"boundary", b""))
    elif name not in RAW and not name.startswith("image/"):
        raise RefusedError(
            415, "send an image: its bytes as the body, or as the file of a multipart/form-data form"
        )
    if len(body) > max_bytes:
        raise RefusedError(413, Body._too_long(max_bytes))
    return body


def _file_of(body: bytes, boundary: bytes) -> bytes:
    """The content of the only part of a form that is a file, or of its only part."""
    form = _Form()
    try:
        if not boundary:
            raise MultipartParseError("no boundary")
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError):
        raise RefusedError(400, "the form is not one of multipart/form-data, or it is cut off") from None
    if not form.ended:
        raise RefusedError(400, "the form is not one of multipart/form-data, or it is cut off")
    files = [part for part in form.parts if part.is_file] or form.parts
    if len(files) != 1:
        raise RefusedError(400, f"the form holds {len(files)} files; send one image in each request")
    return bytes(files[0].content)


class _FormPart:
    def __init__(self) -> None:
        self.content = bytearray()
        self.is_file = False


class _Form:
    """Hears the parser."""

    def __init__(self) -> None:
        self.parts: list[_FormPart] = []
        self.ended = False
        self._field, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": lambda: self.parts.append(_FormPart()),
            "on_part_data": lambda data, start, end: self.parts[-1].content.extend(data[start:end]),
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_end": self._end,
        }

    def _header(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self.parts[-1].is_file = b"filename" in options
        self._field.clear()
        self._value.clear()

    def _end(self) -> None:
        self.ended = True
