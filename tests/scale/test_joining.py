"""Which Ray a run joins, and how it says that there is none: no Ray is started here but by the last test."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from raysurl.errors import InputError
from raysurl.scale import joining

GREETING = b"\0\0\0\x04\0\0\0\0\0"  # an empty frame of settings
# frames of headers that end the first stream: what servers of HTTP/2 answer to a path they do not know
HTTP2 = {
    status: b"\0\0\1\1\5\0\0\0\1" + code
    for status, code in {200: b"\x88", 400: b"\x8c", 404: b"\x8d"}.items()
}
HTTP2[401] = b"\0\0\5\1\5\0\0\0\1" + b"\x08\x03401"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cluster of this machine, and little patience."""
    for name in ("RAY_ADDRESS", "RAY_USE_TLS", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(joining, "REACH_S", 1.0)


@pytest.fixture
def server():
    """Starts a server on a free port that answers each connection with given bytes; None: with nothing at all.

    `then`: what it says when it has been asked.
    """
    sockets, ends = [], threading.Event()

    def start(answer, then=b""):
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve():
            while not ends.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                sockets.append(connection)
                if answer is not None:
                    with contextlib.suppress(OSError):  # whoever only looked has gone already
                        connection.sendall(answer)
                        asked = b""
                        while then != b"" and len(asked) < 150 and (part := connection.recv(4096)):
                            asked += part
                        if then is None:
                            continue
                        connection.sendall(then)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield start
    ends.set()
    for each in sockets:
        each.close()


@pytest.fixture
def grpc_server():
    """Starts a server of gRPC on a free port that knows some methods, and answers them with a code."""
    servers = []

    def start(methods, code=grpc.StatusCode.OK):
        def answered(_, context):
            return b"" if code is grpc.StatusCode.OK else context.abort(code, "as a Ray says it")

        def handler(call):
            return grpc.unary_unary_rpc_method_handler(answered) if call.method in methods else None

        known = grpc.GenericRpcHandler
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers(
            [type("Handler", (known,), {"service": lambda _, call: handler(call)})()]
        )
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"127.0.0.1:{port}"

    yield start
    for each in servers:
        each.stop(None)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def started_here(tmp_path, address):
    (tmp_path / "ray").mkdir(exist_ok=True)
    (tmp_path / "ray" / joining.ADDRESS_FILE).write_text(address)


@pytest.mark.parametrize("given_", [None, "", "  "])
def test_without_an_address_one_is_started_and_said(monkeypatch, given_):
    if given_ is not None:
        monkeypatch.setenv("RAY_ADDRESS", given_)
    address, said = joining._address()
    assert (address, "RAY_ADDRESS" in os.environ) == (None, False)
    assert said.startswith("started one for this run alone")


@pytest.mark.parametrize("code", ["OK", "UNAUTHENTICATED", "NOT_FOUND"])
@pytest.mark.parametrize(("scheme", "method"), [("", joining.CHECK_ALIVE), ("ray://", joining.CLUSTER_INFO)])
def test_a_ray_that_answers_at_the_address_is_joined_and_said(monkeypatch, grpc_server, scheme, method, code):
    address = scheme + grpc_server([method], grpc.StatusCode[code])
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert joining._address() == (address, f"joined the cluster of RAY_ADDRESS={address}")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "no answer in"),
        (b"", "something else"),
        (b"\0\0", "something else"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else"),
        (b"-ERR unknown command 'PRI'\r\n", "something else"),
        (GREETING, "something else"),  # of HTTP/2 and then gone
        *((status, "something else") for status in HTTP2.values()),
    ],
)
def test_what_listens_there_and_is_no_ray_is_told_at_once(monkeypatch, server, answer, why):
    speaks_http2 = answer in HTTP2.values()
    monkeypatch.setenv("RAY_ADDRESS", server(GREETING, answer) if speaks_http2 else server(answer))
    began = time.monotonic()
    with pytest.raises(InputError, match=f"RAY_ADDRESS=127.*: no Ray answers there .*{why}.*runtime=local"):
        joining._address()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_another_program_that_speaks_grpc_is_no_ray(monkeypatch, grpc_server, scheme):
    monkeypatch.setenv("RAY_ADDRESS", scheme + grpc_server(["/somebody.else/Method"]))
    with pytest.raises(InputError, match=r"no Ray answers there .what listens there is something else"):
        joining._address()


def test_a_server_that_greets_and_says_no_more_is_not_waited_for(monkeypatch, server):
    monkeypatch.setenv("RAY_ADDRESS", server(GREETING, None))
    with pytest.raises(InputError, match=r"no Ray answers there .no answer in"):
        joining._address()


def test_a_server_that_asks_for_tls_is_not_greeted_in_the_clear(monkeypatch, server):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_ADDRESS", address := server(b"\x15\x03\x03\0\x02\x02\x46"))
    assert joining._address()[0] == address


def test_nothing_that_listens_is_told_at_once(monkeypatch):
    for address in (closed_port(), "ray://" + closed_port()):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match=r"no Ray answers there.*refused"):
            joining._address()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://cluster.example/ray"])
def test_a_job_servers_address_is_said_to_be_one(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"ray job submit --address {address}"):
        joining._address()


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=30))
def test_an_address_is_host_and_port_or_refused(text):
    try:
        host, port = joining._host_and_port(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536
    assert text.endswith(f":{port}") or text.rpartition(":")[2].lstrip("0") == str(port)


@pytest.mark.parametrize(
    "address",
    ["nonsense", ":6379", "host:", "host:0", "host:65536", "host:٣", "a/b:1", "redis://h:1", "ray://"],
)
def test_what_is_no_address_is_one_sentence(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match="is no address of a Ray; give host:port"):
        joining._address()


@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_cluster_that_this_user_started_is_joined(monkeypatch, tmp_path, grpc_server, asked):
    if asked:
        monkeypatch.setenv("RAY_ADDRESS", asked)
    started_here(tmp_path, address := grpc_server([joining.CHECK_ALIVE]))
    assert joining._address() == (address, f"joined the cluster at {address} that `ray start` began here")


def test_one_that_has_ended_is_somebody_elses_or_is_no_address_is_not(
    monkeypatch, tmp_path, server, grpc_server
):
    for content in (closed_port(), "", "x", "\0:1", server(b"HTTP/1.1 400\r\n\r\n")):
        started_here(tmp_path, content)
        assert joining._address()[0] is None
    started_here(tmp_path, grpc_server([joining.CHECK_ALIVE]))
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    assert joining._address()[0] is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(InputError, match="RAY_ADDRESS=auto and no cluster that you started"):
        joining._address()


def test_a_folder_that_holds_no_sockets_or_files_is_told_with_what_to_set(monkeypatch, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        joining._check_folder()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(
        InputError, match=r"bytes longer than the system allows; set RAY_TMPDIR to a short path"
    ):
        joining._check_folder()
    for folder in ("/proc/none", "/dev/null"):
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with pytest.raises(InputError, match=r"Ray cannot keep its files in .*set RAY_TMPDIR"):
            joining._check_folder()


PRIVATE = """
import json, os, sys
import ray
from raysurl.scale import joining
joining.connect()
socket = ray.nodes()[0]["ObjectStoreSocketName"]
arenas = ray.get(ray.remote(num_cpus=0)(lambda: os.environ.get("MALLOC_ARENA_MAX")).remote())
print(json.dumps([ray.get_runtime_context().gcs_address, socket.partition("/sockets/")[0], arenas]), flush=True)
sys.stdin.readline()
"""


def started(**more):
    """A process with its driver, what it says first, its Ray's address and folder, and what a task has of malloc's."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRIVATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
    )  # fmt: skip
    said = process.stdout.readline()
    return process, said, *json.loads(process.stdout.readline())


@pytest.mark.slow
@pytest.mark.ray
def test_two_runs_on_one_machine_have_a_ray_each(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    first, said, here, *one = started()
    second, _, there, *other = started()
    assert said.startswith("Ray: started one for this run alone")
    assert here != there
    for session, arenas in (one, other):
        # nor do they wait for each other's ports
        assert "Failed to bind" not in (Path(session) / "logs" / "dashboard_agent.log").read_text()
        assert arenas == "1"
    first.communicate("\n")
    assert second.poll() is None
    second.communicate("\n")
    assert second.returncode == 0


def test_processes_of_a_cluster_that_is_joined_keep_what_they_have_freed(ray_session, monkeypatch):
    import ray

    address = ray.get_runtime_context().gcs_address
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    process, said, there, _, arenas = started(RAY_ADDRESS=address)
    process.communicate("\n")
    assert said.startswith("Ray: joined")
    assert (there, arenas) == (address, "1")


def test_what_the_user_or_the_job_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert joining._carried() == {"MALLOC_ARENA_MAX": "2"}
    jobs_own = {"runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "2"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(jobs_own))
    assert joining._carried() == {}  # Ray refuses the same name twice
