"""What `raysurl serve` is asked for, and the server around the gate: heads, draining, ports."""

import asyncio
import importlib.util
import io
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

import numpy as np
from asking import Here, served
from PIL import Image
from small_run import finished_index, finished_run

import raysurl
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.serving import asked as asking_for
from raysurl.serving import listener
from raysurl.serving.asked import Limits, asked_for, is_loopback, listen
from raysurl.serving.gate import Gate
from raysurl.serving.images import RefusedError
from raysurl.serving.model import load_served

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(asking_for.TOKEN, raising=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "run=DIR"),
        ({"run": "x", "port": "70000"}, "port=70000"),
        ({"run": "x", "port": "http"}, "port=http"),
        ({"run": "x", "host": "0.0.0.0"}, "needs a token"),
        ({"run": "x", "host": "::"}, "needs a token"),
        ({"run": "x", "host": "example.org"}, "needs a token"),
        ({"run": "x", "host": "127.0.0.1.example.org"}, "needs a token"),
        ({"run": "x", "token_file": "nowhere"}, "cannot be read"),
        ({"run": "x", "replicas": "0"}, "replicas=0"),
        ({"run": "x", "gpus": "1.5"}, "gpus=1.5"),
        ({"run": "x", "batch_wait_s": "-1"}, "batch_wait_s=-1"),
        ({"run": "x", "max_pixels": "999999999"}, "at most 178956970"),
        ({"run": "x", "max_bytes": "lots"}, "max_bytes=lots"),
        ({"run": "x", "timeout_s": "0"}, "timeout_s=0"),
    ],
)
def test_what_cannot_be_is_one_sentence(given, said):
    with pytest.raises(InputError, match=said):
        asked_for(given)


@pytest.mark.parametrize("package", asking_for.NEEDS)
def test_a_package_that_is_missing_is_named_with_its_extra(package, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(InputError, match=rf"package {package}: pip install 'raysurl\[serve\]'"):
        asked_for({"run": "x"})


@pytest.mark.parametrize("content", ["", "short", "two words of a sentence", "é" * 20, f"{TOKEN}\n{TOKEN}"])
def test_a_token_must_be_one_that_can_be_brought(content, tmp_path):
    (tmp_path / "token").write_text(content)
    with pytest.raises(InputError, match="16 or more"):
        asked_for({"run": "x", "token_file": f"{tmp_path}/token"})


def test_a_token_comes_from_its_file_or_else_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(asking_for.TOKEN, "of-the-environment")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert asked_for({"run": "x", "host": "0.0.0.0"}).token == "of-the-environment"
    assert asked_for({"run": "x", "token_file": f"{tmp_path}/token"}).token == TOKEN


def test_which_addresses_are_of_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "1.2.7.127")))


def test_a_port_in_use_and_an_address_of_another_machine_are_one_sentence():
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])
    for host in ("192.0.2.77", "no-such-host.invalid"):
        with pytest.raises(InputError, match="no address of this machine"):
            listen(host, 0)


def test_an_index_of_another_model_is_refused_before_anything_starts(tmp_path):
    run, index = str(finished_run()), str(finished_index())
    other = tmp_path / "encoder.safetensors"
    other.write_bytes((finished_run() / "encoder.safetensors").read_bytes() + b" ")
    classifier = str(next(finished_run().glob("classifier-*")))
    for given, said in (
        ({"run": str(other), "index": index}, "not the run that made"),
        ({"run": classifier, "index": index}, "another encoder's"),
        ({"run": run, "index": run}, "not an index"),
        ({"run": f"{run}/nowhere"}, "run="),
    ):
        with pytest.raises(InputError, match=said):
            load_served(asked_for(given), served().device)


def test_the_encoder_that_lies_in_an_index_and_a_classifiers_own_are_served():
    image = served().blank()
    alone = load_served(asked_for({"index": str(finished_index())}), served().device)
    assert (alone.forward(alone.encoder, [image]) == served().forward(served().encoder, [image])).all()
    assert "classifier" in alone.why_no_classes
    classifier = str(next(finished_run().glob("classifier-*")))
    tuned = load_served(asked_for({"run": classifier}), served().device)
    assert tuned.classes == served().classes
    assert (tuned.forward(tuned.encoder, [image]) != served().forward(served().encoder, [image])).any()


# -------------------------------------------------------------------- the server


class Slow(Here):
    async def answer(self, ask):
        self.asked.set()
        await asyncio.sleep(0.3)
        return await super().answer(ask)


def test_the_server_leaves_who_never_ends_a_head_and_answers_who_is_inside_at_its_end(monkeypatch):
    monkeypatch.setattr(listener, "HEAD_S", 0.2)
    where, found = listen("127.0.0.1", 0), []
    port = where.getsockname()[1]
    backend = Slow()
    backend.asked = threading.Event()
    gate = Gate(Limits(), None, "127.0.0.1", {})

    def ask():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/embed", data=b"no image") as answer:
            found.append(answer.status)

    def asked():
        try:
            ask()
        except urllib.error.HTTPError as error:
            found.append(error.code)

    with listener.listening(gate, where, 5):
        gate.open(backend)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as idle:
            idle.sendall(b"POST /embed HTTP/1.1\r\nHost: local")
            since = time.monotonic()
            assert idle.recv(100) == b""
            assert time.monotonic() - since < 4
        client = threading.Thread(target=asked)
        client.start()
        assert backend.asked.wait(5)
    client.join(5)
    assert found == [415]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


# -------------------------------------------------------------------- other encoders


def stored(folder, *settings):
    """The file of an encoder with its initial weights."""
    recipe = load_recipe(["encoder.name=mlp", "encoder.widths=[4]", "views.size=8", *settings])
    return str(write_encoder(folder, encoder_of(recipe), recipe))


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).save(file, "PNG")
    return file.getvalue()


def test_images_become_vectors_where_the_encoder_takes_these(tmp_path):
    file = stored(tmp_path, "encoder.inputs=64", "data.flatten=grey")
    model = load_served(asked_for({"run": file}), served().device)
    found = model.forward(model.encoder, [model.prepared(png(8, 8), model.encoder)])
    np.testing.assert_allclose(found, raysurl.load(file).embed([png(8, 8)]), rtol=1e-5, atol=1e-6)
    with pytest.raises(RefusedError, match="72 values, and the encoder takes 64"):
        model.prepared(png(9, 8), model.encoder)


def test_an_encoder_of_vectors_is_refused(tmp_path):
    file = stored(tmp_path, "encoder.inputs=10")
    with pytest.raises(InputError, match="images alone are served"):
        load_served(asked_for({"run": file}), served().device)
