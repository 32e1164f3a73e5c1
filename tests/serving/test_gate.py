"""What the door of the service lets in, what it answers, and what it says to everything else."""

import asyncio
import io
import struct
import zlib
from functools import cache

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from asking import MAX_PIXELS, Here, ask, served
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_run import finished_index, finished_run

import raysurl
from raysurl.curation import open_index, search_images
from raysurl.serving import gate as door
from raysurl.serving.asked import Limits
from raysurl.serving.bodies import image_in
from raysurl.serving.gate import Gate, UnavailableError, described
from raysurl.serving.images import RefusedError
from raysurl.serving.model import missing_pages

LIMITS = Limits(max_bytes=50_000, max_pixels=MAX_PIXELS, queue=4, timeout_s=5)
TOKEN = "a" * 20


@cache
def about(model):
    return described(model.about(), LIMITS, missing_pages(model))


def gate(backend=None, *, limits=LIMITS, token=None, model=None):
    model = model or served()
    found = Gate(limits, token, "127.0.0.1", about(model))
    found.open(backend or Here(model))
    return found


def asked(*arguments, of=None, **more):
    return asyncio.run(ask(of or gate(), *arguments, **more))


def picture(format="PNG", mode="RGB", size=(9, 8), **more):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **more)
    return file.getvalue()


def wide():
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 16).save(file, "PNG")
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", size=(16, 8), exif=exif)


def animated():
    frames = [Image.new("RGB", (8, 8), (i * 40, 0, 255)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def form(image, *, boundary=b"xyz", name=b'name="file"; filename="a.png"', before=b""):
    head = b"--" + boundary + b"\r\nContent-Disposition: form-data; " + name + b"\r\n\r\n"
    return before + head + image + b"\r\n--" + boundary + b"--\r\n"


FORM = {"content-type": "multipart/form-data; boundary=xyz"}
FIRST = form(b"y").removesuffix(b"--xyz--\r\n")
FIELD = form(b"5", name=b'name="k"').removesuffix(b"--xyz--\r\n")

# -------------------------------------------------------------------- answers


def test_images_of_every_kind_are_embedded_as_raysurl_does():
    images = [picture(f) for f in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    images += [picture(mode=mode) for mode in ("L", "P", "LA", "RGBA", "1")]
    images += [wide(), turned(), animated(), picture("PNG", size=(40, 90))]
    model, of = raysurl.load(finished_run()), gate()
    for image in images:
        found = asked("/embed", image, of=of)
        assert found.status == 200, found.body
        np.testing.assert_allclose(found.json["embedding"], model.embed([image])[0], rtol=1e-5, atol=1e-6)
        assert found.json["dim"] == model.encoder.dim


def test_an_embedding_as_octets_and_of_a_form():
    image, of = picture(), gate()
    expected = np.float32(asked("/embed", image, of=of).json["embedding"])
    found = asked("/embed", image, of=of, headers={"accept": "application/octet-stream"})
    assert found.headers["content-type"] == "application/octet-stream"
    np.testing.assert_array_equal(np.frombuffer(found.body, "<f4"), expected)
    for body in (form(image), form(image, before=FIELD)):
        np.testing.assert_array_equal(asked("/embed", body, of=of, headers=FORM).json["embedding"], expected)


def test_neighbours_are_those_of_search(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    index = open_index(str(finished_index()))
    expected = search_images(index, str(tmp_path / "a.png"), 3)
    found = asked("/neighbours?k=3", picture()).json["neighbours"]
    table = index.table.take(expected.rows[0]).to_pylist()
    assert [of["name"] for of in found] == [of["name"] for of in table]
    assert [int(of["class"]) for of in found] == [of["label"] for of in table]
    np.testing.assert_allclose([of["similarity"] for of in found], expected.cosines[0], atol=1e-6)


def test_classes_are_those_of_predict():
    model = raysurl.load(finished_run())
    expected = dict(zip(model.classes, model.predict_proba([picture()])[0], strict=True))
    found = asked("/classify?top=3", picture()).json
    assert found["class"] == model.predict([picture()])[0]
    assert len(found["classes"]) == 3
    for of in found["classes"]:
        assert of["probability"] == pytest.approx(expected[of["class"]], abs=1e-6)
    assert found["probability"] == max(expected.values()) == found["classes"][0]["probability"]


def test_what_is_served_is_said_with_its_limits_and_without_a_path():
    found = asked("/", method="GET")
    assert (found.json["model"]["dim"], found.json["limits"]["max_bytes"]) == (4, 50_000)
    assert found.json["model"]["input"]["crop"] == 8
    assert str(finished_run()) not in found.body.decode()
    assert asked("/", method="HEAD").body == b""


def test_a_page_that_is_not_there_says_with_which_setting_it_would_be():
    bare = gate(model=served(index=False))
    said = asked("/neighbours", picture(), of=bare)
    assert (said.status, "index=DIR" in said.error) == (404, True)
    assert "index=DIR" in asked("/", method="GET", of=bare).json["pages"]["/neighbours"]


# -------------------------------------------------------------------- refusals


def bomb():
    """A PNG of a few bytes whose header says 60,000 × 60,000."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(bytes(9)), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def outgrown():
    """A GIF whose first frame is larger than its screen."""
    found = bytearray(picture("GIF", "1", (400, 300)))
    found[6:10] = struct.pack("<HH", 2, 2)
    return bytes(found)


REFUSED = {
    "an unknown page": (("/nowhere", b"x"), {}, 404, "/embed"),
    "a wrong method": (("/embed", b"x"), {"method": "GET"}, 405, "POST"),
    "nothing": (("/embed", b""), {}, 400, "no image"),
    "text": (("/embed", b"hello"), {}, 415, "JPEG"),
    "text that says it is a picture": (("/embed", b"hello"), {"headers": {"content-type": "image/png"}}, 415, "JPEG"),
    "a PDF": (("/embed", b"%PDF-1.7\n%"), {}, 415, "JPEG"),
    "an icon": (("/embed", picture("ICO")), {}, 415, "JPEG"),
    "JSON": (("/embed", b"{}"), {"headers": {"content-type": "application/json"}}, 415, "multipart"),
    "a cut image": (("/embed", picture(size=(90, 90))[:-500]), {}, 400, "cannot be read"),
    "a cut header": (("/embed", picture()[:20]), {}, 400, "damaged"),
    "a long body": (("/embed", b"x" * 50_001), {}, 413, "50,000 bytes"),
    "many pixels": (("/embed", picture("GIF", "1", (400, 300))), {}, 413, "400 × 300"),
    "a bomb": (("/embed", bomb()), {}, 413, "max_pixels="),
    "a frame beyond the screen": (("/embed", outgrown()), {}, 413, "400 × 300"),
    "no boundary": (("/embed", form(b"x")), {"headers": {"content-type": "multipart/form-data"}}, 400, "cut off"),
    "a cut form": (("/embed", form(picture())[:-12]), {"headers": FORM}, 400, "cut off"),
    "two files": (("/embed", form(b"x", before=FIRST)), {"headers": FORM}, 400, "2 files"),
    "no k": (("/neighbours?k=0", picture()), {}, 400, "k= must"),
    "more than the index": (("/neighbours?k=61", picture()), {}, 400, "60 neighbours"),
    "no top": (("/classify?top=x", picture()), {}, 400, "top= must"),
    "another host": (("/embed", picture()), {"headers": {"host": "evil.example:80"}}, 403, "localhost"),
    "a host like ours": (("/embed", picture()), {"headers": {"host": "localhost.evil.example"}}, 403, "localhost"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_sentence(name):
    arguments, more, status, said = REFUSED[name]
    found = asked(*arguments, **more)
    assert (found.status, said in found.error) == (status, True), found.body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", None])
def test_this_machines_own_names_are_let_in(host):
    assert asked("/embed", picture(), headers={"host": host}).status == 200


def test_an_endless_body_is_left_soon_and_is_answered():
    def endless():
        while True:
            yield b"x" * 10_000

    found = asked("/embed", parts=endless())
    assert (found.status, "50,000 bytes" in found.error) == (413, True)
    assert found.taken <= 2 + 2 * 5 + 2
    assert found.headers["connection"] == "close"


def test_a_slow_body_is_408_and_a_client_that_goes_is_forgotten():
    quick = gate(limits=Limits(timeout_s=0.05))
    assert asked("/embed", of=quick, parts=[b"x"] * 9, slow=0.03).status == 408

    async def goes():
        async def receive():
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": []}
        await quick({**scope, "headers": [(b"content-length", b"9")]}, receive, None)

    asyncio.run(goes())
    assert b"raysurl_queue 0.0" in quick.gauges.text()


# -------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (None, 401), ("", 401), (TOKEN, 401), ("Bearer", 401), ("Bearer " + TOKEN[:-1], 401), ("Bearer é", 401),
        (f"Basic {TOKEN}", 401), (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200),
    ],
)  # fmt: skip
def test_where_there_is_a_token_it_must_be_brought(sent, status):
    of = gate(token=TOKEN)
    headers = {"host": "anything.example"} | ({} if sent is None else {"authorization": sent})
    for path, method in (("/embed", "POST"), ("/", "GET"), ("/metrics", "GET")):
        found = asked(path, picture() if method == "POST" else b"", of=of, headers=headers, method=method)
        assert found.status == status
        assert status == 200 or "Bearer" in found.error
    assert asked("/health", of=of, headers=headers, method="GET").status == 200
    assert TOKEN not in repr(of.about)


# -------------------------------------------------------------------- load and failure


class Waits(Here):
    """Answers when it is let."""

    def __init__(self):
        super().__init__()
        self.let, self.asked = asyncio.Event(), 0

    async def answer(self, ask):
        self.asked += 1
        await self.let.wait()
        return await super().answer(ask)

    async def alive(self):
        self.asked += 1
        await self.let.wait()


def test_more_than_the_queue_is_503_and_all_before_is_answered():
    async def crowd():
        backend = Waits()
        of = gate(backend)
        first = [asyncio.create_task(ask(of, body=picture())) for _ in range(LIMITS.queue)]
        await asyncio.sleep(0.01)
        late = await ask(of, body=picture())
        backend.let.set()
        return late, await asyncio.gather(*first), await ask(of, body=picture())

    late, first, after = asyncio.run(crowd())
    assert (late.status, late.headers["retry-after"]) == (503, "1")
    assert "4 requests" in late.error
    assert {found.status for found in [*first, after]} == {200}


def test_a_refusal_does_not_show_that_the_model_lives():
    async def both():
        backend = Waits()
        of = gate(backend)
        backend.let.set()
        asked = [
            (await ask(of, body=body), await ask(of, "/health", method="GET"))
            for body in (b"text", picture())
        ]
        return asked, backend.asked

    asked, times = asyncio.run(both())
    assert [found.status for pair in asked for found in pair] == [415, 200, 200, 200]
    assert times == 3  # two images, and one question of its health


def test_a_model_that_does_not_answer_is_504_and_unwell(monkeypatch):
    monkeypatch.setattr(door, "HEALTH_S", 0.02)

    async def both():
        of = gate(Waits(), limits=Limits(timeout_s=0.02))
        return await ask(of, body=picture()), await ask(of, "/health", method="GET")

    late, unwell = asyncio.run(both())
    assert late.status == 504
    assert (unwell.status, unwell.headers["retry-after"]) == (503, "1")


def test_many_who_ask_for_health_make_the_model_answer_once():
    async def crowd():
        backend = Waits()
        of = gate(backend)
        asking = [asyncio.create_task(ask(of, "/health", method="GET")) for _ in range(9)]
        await asyncio.sleep(0.01)
        backend.let.set()
        found = [answer.status for answer in await asyncio.gather(*asking)]
        return found, (await ask(of, "/health", method="GET")).status, backend.asked

    assert asyncio.run(crowd()) == ([200] * 9, 200, 1)


class Fails(Here):
    def __init__(self, error):
        super().__init__()
        self.error = error

    async def answer(self, ask):
        raise self.error


def test_a_backend_that_fails_tells_nothing_of_itself(caplog):
    found = asked("/embed", picture(), of=gate(Fails(RuntimeError("secret of a/file.py"))))
    assert (found.status, "secret" in found.error) == (500, False)
    assert "secret" in caplog.text
    assert asked("/embed", picture(), of=gate(Fails(UnavailableError()))).status == 503


def test_until_the_model_is_loaded_it_is_503():
    of = Gate(LIMITS, None, "127.0.0.1", {})
    for path, method in (("/health", "GET"), ("/embed", "POST")):
        found = asked(path, picture(), of=of, method=method)
        assert (found.status, "loaded" in found.error, "retry-after" in found.headers) == (503, True, True)


def test_metrics_count_requests_by_page_and_status():
    of = gate()
    for body in (picture(), picture(), b"hello"):
        asked("/embed", body, of=of)
    asked("/a/page/that/anybody/names", of=of)
    text = asked("/metrics", of=of, method="GET").body.decode()
    for line in (
        'raysurl_requests_total{endpoint="embed",status="200"} 2.0',
        'raysurl_requests_total{endpoint="embed",status="415"} 1.0',
        'raysurl_requests_total{endpoint="other",status="404"} 1.0',
        'raysurl_request_seconds_count{endpoint="embed"} 3.0',
        "raysurl_batch_size_sum 2.0",
        "raysurl_queue_limit 4.0",
    ):
        assert line in text
    assert "anybody" not in text


# -------------------------------------------------------------------- any body

BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([picture(), picture("JPEG"), picture("TIFF"), picture("WEBP"), animated()]).flatmap(
        lambda image: st.tuples(st.integers(0, len(image) - 1), st.binary(min_size=1, max_size=9)).map(
            lambda change: image[: change[0]] + change[1] + image[change[0] + len(change[1]) :]
        )
    ),
)
TYPES = st.one_of(
    st.sampled_from(
        ["image/png", "multipart/form-data; boundary=xyz", "multipart/form-data", "text/html", ""]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)


@settings(max_examples=20)
@given(BODIES, TYPES, st.booleans())
def test_no_body_and_no_type_is_an_error_of_the_service(body, kind, in_a_form):
    body = form(body) if in_a_form else body
    found = asked("/classify", body, headers={"content-type": kind})
    assert found.status in (200, 400, 413, 415), found.body
    assert found.status == 200 or found.error


@settings(max_examples=40)
@given(st.binary(max_size=300), st.binary(max_size=20))
def test_a_form_gives_back_the_bytes_of_its_file(content, boundary):
    boundary = b"b" + boundary.hex().encode()
    body = form(content, boundary=boundary, before=FIELD.replace(b"xyz", boundary))
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    assert image_in(body, kind, 1000) == content
    for cut in (len(body) // 2, len(body) - len(boundary) - 5):
        with pytest.raises(RefusedError, match="cut off"):
            image_in(body[:cut], kind, 1000)
