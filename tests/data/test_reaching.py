"""A remote place of data that raises what its library likes, or does not answer: one sentence, soon."""

import re
import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raysurl.data import storage
from raysurl.errors import InputError


class Odd(MemoryFileSystem):
    """Raises, or waits, at whatever is asked of it first."""

    protocol = ("odd",)
    cachable = False
    raised: Exception | None = None

    def info(self, path, **kwargs):
        if Odd.raised is None:
            threading.Event().wait(3)
            return super().info(path)
        raise Odd.raised


@pytest.fixture
def odd(monkeypatch):
    fsspec.register_implementation("odd", Odd, clobber=True)
    storage.locate.cache_clear()
    yield Odd
    storage.locate.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no such bucket\nand more"),
        KeyError("token"),
        PermissionError("who are you"),
        ConnectionError("no route"),
        AttributeError("'NoneType' object has no attribute 'x'"),
        OSError(113, "No route to host"),
        Exception(),
    ],
)
def test_what_a_remote_file_system_raises_is_one_sentence(odd, error):
    odd.raised = error
    with pytest.raises(InputError, match=re.escape("data.path=odd://there cannot be opened: ")) as raised:
        storage.kind("odd://there", "data.path")
    assert "\n" not in str(raised.value)


def test_one_that_does_not_answer_is_not_waited_for(odd, monkeypatch):
    odd.raised = None
    monkeypatch.setattr(storage, "REACH_S", 0.1)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"data\.path=odd://there cannot be opened: no answer in 0 s"):
        storage.kind("odd://there", "data.path")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("uri", ["nothing://x/y", "s3 3://x", "://x", "zzz://"])
def test_a_scheme_that_nobody_knows_is_one_sentence(uri):
    with pytest.raises(InputError, match=r"cannot be opened|does not exist"):
        storage.kind(uri, "data.path")
