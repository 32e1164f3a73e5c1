"""`raysurl serve` as a person starts it, once: what it answers under load, what it refuses, and how it ends."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from small_run import finished_index, finished_run

pytest.importorskip("ray.serve")
pytest.importorskip("python_multipart")

import raysurl

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TOKEN = "of-the-test-0123456789"
CLIENTS = 16


def pictures(count):
    pixels = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), np.uint8)
    found = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(file.getvalue())
    return found


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Its port and process, and the states of its health until it was ready."""
    folder, port = tmp_path_factory.mktemp("serving"), free_port()
    (folder / "ray_token").write_text("a" * 64)
    environment = os.environ | {
        "RAY_AUTH_TOKEN_PATH": f"{folder}/ray_token",
        "RAYSURL_SERVE_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": "local",
    }
    settings = [f"run={finished_run()}", f"index={finished_index()}", f"port={port}", "max_bytes=100000"]
    settings += ["batch_wait_s=0.02", "timeout_s=10"]
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "pipelines/serve.py", *settings],
            env=environment,
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    found = SimpleNamespace(port=port, process=process, out=folder / "out", health=[])
    deadline = time.monotonic() + 120
    while found.health[-1:] != [200]:
        assert process.poll() is None, found.out.read_text()
        assert time.monotonic() < deadline, found.out.read_text()
        try:
            found.health.append(ask(found, "/health", method="GET", token=None)[0])
        except OSError:
            time.sleep(0.2)
        time.sleep(0.1)
    yield found
    process.kill()


def ask(service, path, body=None, *, method="POST", token=TOKEN, connection=None, **headers):
    own = connection or http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    own.request(method, path, body, headers)
    answer = own.getresponse()
    found = answer.status, answer.read()
    if connection is None:
        own.close()
    return found


def processes_of(service):
    """All that carry its environment."""
    mark, found = str(service.out.parent / "ray_token").encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if mark in path.read_bytes() else []
    return found


def test_it_says_that_it_loads_and_then_that_it_is_well(service):
    assert set(service.health) == {503, 200}
    assert service.health == sorted(service.health, reverse=True)


def test_answers_are_those_of_python_and_the_batches_of_many_clients_hold_several(service):
    model, images = raysurl.load(finished_run()), pictures(CLIENTS)
    rows, classes = model.embed(images), model.predict(images)

    def client(i):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        for _ in range(5):
            status, body = ask(service, "/embed", images[i], connection=connection)
            assert status == 200, body
            np.testing.assert_allclose(json.loads(body)["embedding"], rows[i], rtol=1e-5, atol=1e-6)
        octets = ask(service, "/embed", images[i], connection=connection, Accept="application/octet-stream")[
            1
        ]
        np.testing.assert_allclose(np.frombuffer(octets, "<f4"), rows[i], rtol=1e-5, atol=1e-6)
        found = json.loads(ask(service, "/classify", images[i], connection=connection)[1])
        assert found["class"] == classes[i]
        near = json.loads(ask(service, "/neighbours?k=3", images[i], connection=connection)[1])["neighbours"]
        assert len(near) == 3
        connection.close()
        return True

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(client, range(CLIENTS)))
    text = ask(service, "/metrics", method="GET")[1].decode()
    total, count = (float(re.search(rf"raysurl_batch_size_{of} (\S+)", text)[1]) for of in ("sum", "count"))
    assert total >= 8 * CLIENTS
    assert total / count > 1.2
    assert f'raysurl_requests_total{{endpoint="embed",status="200"}} {6 * CLIENTS}.0' in text
    assert float(re.search(r"raysurl_replica_resident_bytes\{.*\} (\S+)", text)[1]) > 1e8


def test_the_page_asks_as_it_says(service, tmp_path, monkeypatch):
    """But for the port, and the token that this service asks for."""
    page = (ROOT / "docs" / "serving.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    block = block.replace("localhost:8000", f"127.0.0.1:{service.port}")
    block = block.replace("headers={", f'headers={{"Authorization": "Bearer {TOKEN}", ')
    monkeypatch.chdir(tmp_path)
    (image,) = pictures(1)
    Path("cat.png").write_bytes(image)
    names = {}
    exec(block, names)
    asked = np.asarray(Image.open("cat.png"))[None]
    np.testing.assert_allclose(names["embedding"], raysurl.load(finished_run()).embed(asked)[0], atol=1e-5)


def test_tokens_limits_and_types_hold_on_the_wire(service):
    image = pictures(1)[0]
    assert ask(service, "/embed", image, token=None)[0] == 401
    assert ask(service, "/embed", image, token="another")[0] == 401
    assert ask(service, "/embed", b"hello")[0] == 415
    assert ask(service, "/embed", b"x" * 100_001)[0] == 413
    assert ask(service, "/embed", iter([b"x" * 10_000] * 15))[0] == 413  # in chunks, without a length
    assert ask(service, "/embed", image)[0] == 200


def test_sigterm_answers_who_is_inside_and_leaves_no_process(service):
    """The last test: it ends the service."""
    image, expected = pictures(1)[0], raysurl.load(finished_run()).embed(pictures(1))[0]
    assert len(processes_of(service)) > 3  # the command, its Ray, its replica
    inside = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    inside.putrequest("POST", "/embed")
    inside.putheader("Authorization", f"Bearer {TOKEN}")
    inside.putheader("Content-Length", str(len(image)))
    inside.endheaders(image[:50])
    time.sleep(0.3)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    inside.send(image[50:])
    answer = inside.getresponse()
    np.testing.assert_allclose(json.loads(answer.read())["embedding"], expected, rtol=1e-5, atol=1e-6)
    code, said = service.process.wait(30), service.out.read_text()
    assert code == 143, said
    last = said.splitlines()[-1]
    assert last.startswith("raysurl: stopped by SIGTERM; start it again with: python pipelines/serve.py run=")
    assert "Traceback" not in said
    assert TOKEN not in said
    deadline = time.monotonic() + 10
    while processes_of(service):
        assert time.monotonic() < deadline
        time.sleep(0.1)
