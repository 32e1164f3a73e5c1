"""Which Ray a run joins: that of RAY_ADDRESS, or one that this user started here with `ray start`, else one of its own.

A Ray that another program has started for itself is never joined: it would end with that program. What cannot be
reached or started is one sentence, soon, instead of Ray's retries.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from raysurl import stopping
from raysurl.allocator import ONE_ARENA
from raysurl.errors import InputError, RunError

# Ray's defaults poll a worker group every 2 s, print each worker line twice and warn of things we do not use.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    **ONE_ARENA,
}
# Besides, of a Ray of one run, which nobody measures: else its agent looks at all processes every five seconds, and
# they tell it of themselves.
_ALONE = {"REPORTER_UPDATE_INTERVAL_MS": "60000", "RAY_enable_metrics_collection": "0"}
ADDRESS_FILE = "ray_current_cluster"  # where `ray start` writes the address of its cluster
REACH_S = 4.0  # that a cluster's port may take to answer
NOT_RAY = "what listens there is something else"
# what a cluster's port, and that of its server for clients (ray://), are asked
CHECK_ALIVE, CLUSTER_INFO = "/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.RayletDriver/ClusterInfo"
SOCKET_BYTES = 107  # of a socket's path, the kernel's limit
# what Ray puts between its temporary directory and the name of its longest socket
SOCKET_TAIL = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
ADVICE = "runtime=local runs without Ray"


def connect() -> None:
    """Join or start a Ray, and say which. Does nothing if connected. Raises InputError or RunError, one sentence."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    address, said = _address()
    logging.getLogger("ray").setLevel(logging.ERROR)
    # worker output stays in Ray's log files: what a person should see is in metrics.jsonl
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        _check_folder()
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": str(_folder())}
    else:
        options |= {"address": address, "runtime_env": {"env_vars": _carried()}}
    stopping.at_exit(ray.shutdown)
    try:
        with for_one_run():
            ray.init(**options)
    except SystemExit as ending:  # of the handler of SIGTERM that Ray brings
        if ending.code == signal.SIGTERM:
            raise stopping.StoppedError(signal.SIGTERM) from None
        raise
    except Exception as error:  # Ray raises whatever its parts do
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        doing = f"join the Ray at {address}" if address else "start a Ray here"
        raise RunError(f"could not {doing} ({first.strip()}); {ADVICE}") from None
    finally:
        stopping.renew()
    print(f"Ray: {said}", flush=True)


def of_one_run() -> bool:
    """Whether the Ray that this process is connected to is one that it has started, and that nobody looks at: it has no
    dashboard. Such a one ends with this process."""
    import ray

    # a Ray whose inside is another says nothing of it
    node = getattr(ray._private.worker, "_global_node", None)
    looked_at = getattr(getattr(node, "_ray_params", None), "include_dashboard", None)
    return bool(getattr(node, "head", False)) and looked_at is False


def _carried() -> dict[str, str]:
    """What processes of a cluster that was here before need of this environment; one that is started here has it all.

    Ray refuses what a job's own runtime environment has too.
    """
    jobs_own = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    return {name: os.environ[name] for name in ONE_ARENA if name not in jobs_own}


@contextlib.contextmanager
def for_one_run() -> Iterator[None]:
    """A Ray that is started within takes any free port for its agent, has no process that reads what workers print, and
    starts its workers by `setup_worker`.

    Ray's own port, 52365, is taken where another Ray runs here, and its agent then tries for 3.3 s and serves nothing.
    What is read would be told to nobody (`log_to_driver`), and takes a hundredth of a core. ray.init has no arguments
    for them (2.60); a Ray whose inside is another keeps its own choice.
    """
    from ray._private import parameter

    given = getattr(parameter, "RayParams", None)
    if given is None:
        yield
        return
    known = inspect.signature(given).parameters
    asked = {
        "dashboard_agent_listen_port": 0,
        "include_log_monitor": False,
        "setup_worker_path": str(Path(__file__).with_name("setup_worker.py")),
    }
    parameter.RayParams = partial(given, **{name: value for name, value in asked.items() if name in known})
    try:
        yield
    finally:
        parameter.RayParams = given


def _address() -> tuple[str | None, str]:
    """The address to join (None: start one), and the words for it."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if not given:
        os.environ.pop("RAY_ADDRESS", None)  # Ray takes an empty one for an address
    if given == "local":
        return None, "started one for this run alone, as RAY_ADDRESS=local says"
    if given and given != "auto":
        _check_address(given)
        return given, f"joined the cluster of RAY_ADDRESS={given}"
    found = _started_here()
    if found is not None:
        return found, f"joined the cluster at {found} that `ray start` began here"
    if given == "auto":
        raise InputError(
            f"RAY_ADDRESS=auto and no cluster that you started with `ray start` runs here ({_folder() / ADDRESS_FILE}"
            " names none); start one, give its host:port, or unset RAY_ADDRESS"
        )
    return None, "started one for this run alone; RAY_ADDRESS is not set and `ray start` has begun none here"


def _started_here() -> str | None:
    """The address that `ray start` of this user has left, if a cluster answers there."""
    path = _folder() / ADDRESS_FILE
    try:
        if path.stat().st_uid != os.getuid():
            return None
        address = path.read_text().strip()
        host, port = _host_and_port(address)
    except (OSError, ValueError):
        return None
    return None if _unreachable(host, port) else address


def _check_address(address: str) -> None:
    """Raises InputError for what is no address of a cluster, or one at which nothing answers."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme in ("http", "https"):
        raise InputError(
            f"RAY_ADDRESS={address} is of a job server: submit the run to it with `ray job submit --address {address}`,"
            f" or set RAY_ADDRESS to host:port of the cluster; {ADVICE}"
        )
    if separator and scheme != "ray":
        raise InputError(
            f"RAY_ADDRESS={address} is no address of a Ray; give host:port, for example 10.0.0.1:6379"
        )
    try:
        host, port = _host_and_port(rest if separator else address)
    except ValueError:
        raise InputError(
            f"RAY_ADDRESS={address} is no address of a Ray; give host:port, for example 10.0.0.1:6379"
        ) from None
    if why := _unreachable(host, port, CLUSTER_INFO if scheme == "ray" and separator else CHECK_ALIVE):
        raise InputError(
            f"RAY_ADDRESS={address}: no Ray answers there ({why}); start one there, give another address, or unset"
            f" RAY_ADDRESS; {ADVICE}"
        )


def _host_and_port(address: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, separator, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    if not separator or not host or not 0 < number < 65536 or "/" in host:
        raise ValueError(address)
    return host.strip("[]"), number


def _unreachable(host: str, port: int, method: str = CHECK_ALIVE) -> str:
    """Why no Ray answers; empty where one may. A name that is looked up for ever is not waited for."""
    found: list[str] = []

    def look() -> None:
        try:
            with socket.create_connection((host, port), timeout=REACH_S):
                pass
            found.append("" if os.environ.get("RAY_USE_TLS") == "1" else _no_ray(host, port, method))
        except TimeoutError:
            found.append(f"no answer in {REACH_S:.0f} s")
        except OSError as error:
            found.append(error.strerror or str(error))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(3 * REACH_S)
    return found[0] if found else f"no answer in {3 * REACH_S:.0f} s"


def _no_ray(host: str, port: int, method: str) -> str:
    """Why this is none, by a call that every Ray answers, if only by asking for its token; empty for a Ray.

    Ray itself would try for a minute to make a Ray of anything else.
    """
    import grpc  # comes with Ray

    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=REACH_S)
        except grpc.RpcError as error:
            codes, details = grpc.StatusCode, str(error.details())
            if error.code() == codes.DEADLINE_EXCEEDED:
                return f"no answer in {REACH_S:.0f} s"
            refusals = (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED, codes.NOT_FOUND)
            # what is no gRPC has a status of HTTP, of which the library makes one of these codes too
            by_ray = error.code() in refusals and not details.startswith("Received http2 header")
            return "" if by_ray else NOT_RAY
    return ""


def _folder() -> Path:
    """Where Ray keeps its sessions, and `ray start` the address of its cluster."""
    return Path(_temporary()) / "ray"


def _temporary() -> str:
    """As Ray chooses it, but that an empty variable is as one that is not set."""
    return os.path.abspath(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _check_folder() -> None:
    """Raises InputError where a Ray of one's own could not keep its files and sockets."""
    base = _temporary()
    long = len(os.fsencode(base + SOCKET_TAIL)) - SOCKET_BYTES
    if long > 0:
        raise InputError(
            f"Ray cannot put its sockets into {base}: their paths would be {long} bytes longer than the system allows;"
            f" set RAY_TMPDIR to a short path, for example RAY_TMPDIR=/tmp; {ADVICE}"
        )
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"Ray cannot keep its files in {folder} ({error.strerror}); set RAY_TMPDIR to a directory that you can"
            f" write to; {ADVICE}"
        ) from None
