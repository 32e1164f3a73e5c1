"""What `raysurl serve` is asked for: checked before anything is loaded."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raysurl.curation.given import count, number
from raysurl.errors import InputError
from raysurl.paths import given_path

NEEDS = ("uvicorn", "fastapi", "starlette", "prometheus_client", "python_multipart")
EXTRA = "pip install 'raysurl[serve]'"
TOKEN = "RAYSURL_SERVE_TOKEN"
SHORTEST = 16  # characters of a token
MOST_PIXELS = 178_956_970  # beyond which Pillow itself takes an image for an attack
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Limits:
    """`max_bytes` of a request's body, `max_pixels` of an image, `queue` requests at once, `timeout_s` for each."""

    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    queue: int = 256
    timeout_s: float = 30.0


@dataclass(frozen=True)
class AskedService:
    """`gpus`, `threads`: of a replica; None: as the machines have them. `token` is never printed or sent to Ray."""

    run: str | None
    index: str | None
    host: str
    port: int
    token: str | None
    replicas: int
    gpus: float | None
    threads: int | None
    max_batch_size: int
    batch_wait_s: float
    limits: Limits


def asked_for(mine: Mapping[str, str]) -> AskedService:
    """Raises InputError for a value that cannot be, an address that needs a token, and where a package is missing."""
    run, index = (str(given_path(k, mine[k]).absolute()) if mine.get(k) else None for k in ("run", "index"))
    if run is None and index is None:
        raise InputError(
            "name what to serve: run=DIR of a finished run, or run=FILE of an encoder.safetensors or a classifier"
        )
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"serving needs the package {package}: {EXTRA}")
    gpus = (
        number(mine, "gpus", 0.5, "a number from 0 to 1, or a whole one", _share)
        if mine.get("gpus")
        else None
    )
    asked = AskedService(
        run=run,
        index=index,
        host=mine.get("host") or "127.0.0.1",
        port=_port(mine.get("port") or "8000"),
        token=_token(mine.get("token_file")),
        replicas=count(mine, "replicas", 1),
        gpus=gpus,
        threads=count(mine, "threads", 1) if mine.get("threads") else None,
        max_batch_size=count(mine, "max_batch_size", 32),
        batch_wait_s=number(
            mine, "batch_wait_s", 0.005, "a number of seconds, 0 to 10", lambda x: 0 <= x <= 10
        ),
        limits=_limits(mine),
    )
    if asked.token is None and not is_loopback(asked.host):
        raise InputError(
            f"host={asked.host} lets other machines in, which needs a token: write one into a file and name it,"
            f" token_file=FILE, or set {TOKEN}; `openssl rand -hex 32` makes one"
        )
    return asked


def _share(value: float) -> bool:
    return 0 <= value <= 1 or (1 < value < 10_000 and value.is_integer())


def _limits(mine: Mapping[str, str]) -> Limits:
    usual = Limits()
    found = Limits(
        max_bytes=count(mine, "max_bytes", usual.max_bytes),
        max_pixels=count(mine, "max_pixels", usual.max_pixels),
        queue=count(mine, "queue", usual.queue),
        timeout_s=number(
            mine, "timeout_s", usual.timeout_s, "a number of seconds above 0", lambda x: 0 < x < 1e6
        ),
    )
    for key, most in (("max_bytes", MOST_BYTES), ("max_pixels", MOST_PIXELS)):
        if getattr(found, key) > most:
            raise InputError(f"{key}={getattr(found, key)} must be at most {most}")
    return found


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise InputError(f"port={text} must be a whole number, 1 to 65535, or 0 for any that is free")
    return int(text)


def _token(file: str | None) -> str | None:
    """Of a file, else of the environment. Raises InputError for one that a request cannot carry, or a short one."""
    if file:
        path: Path | None = given_path("token_file", file)
        where = f"token_file={path}"
        try:
            found = given_path("token_file", file).read_text("ascii").strip()
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            found = ""
    else:
        found, where = os.environ.get(TOKEN, "").strip(), TOKEN
        if not found:
            return None
    if not re.fullmatch(rf"[!-~]{{{SHORTEST},1024}}", found):
        raise InputError(
            f"{where} must hold one line of {SHORTEST} or more printable ASCII characters without blanks;"
            " `openssl rand -hex 32` makes one"
        )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already. Raises InputError where it cannot."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError(
            f"host={host} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 for all"
        ) from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port={port} is in use on {host}; give another one, or port=0 for any that is free"
            ) from None
        if error.errno == errno.EACCES:
            raise InputError(f"port={port} is one that this user may not open; give one above 1023") from None
        raise InputError(
            f"host={host} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 for all"
        ) from None
    return listening
