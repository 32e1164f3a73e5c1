"""One process at a time works in a run directory or a sweep: a second one is refused by name, a dead one is not."""

import json
import os
import re
import socket
import subprocess
import sys

import contract
import pytest
from places import ROOT

from raysurl.errors import InputError, RunError
from raysurl.recipe import load_recipe
from raysurl.train import lock, run_directory

HOLD = """
import sys
from pathlib import Path
from raysurl.train import lock
with lock.working_in(Path(sys.argv[1]), named="output"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Starts a process that holds a directory until it is killed."""
    started = []

    def start(directory):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def free(directory):
    with lock.working_in(directory, named="x"):
        pass


def test_a_second_process_is_refused_by_host_and_process_until_the_first_has_died(tmp_path, hold):
    process = hold(tmp_path)
    said = rf"output=R is in use: process {process.pid} on host {re.escape(socket.gethostname())} has worked in it"
    with pytest.raises(InputError, match=said), lock.working_in(tmp_path, named="output=R"):
        pass
    process.kill()
    process.wait()
    free(tmp_path)


def test_whoever_follows_a_dying_process_waits_for_its_end(tmp_path, hold, monkeypatch):
    process = hold(tmp_path)
    monkeypatch.setattr(lock, "LOCK_S", 0.2)
    with pytest.raises(RunError, match=f"process {process.pid} .* has not ended"), lock.following(tmp_path):
        pass
    monkeypatch.setattr(lock, "LOCK_S", 30.0)
    process.stdin.close()
    with lock.following(tmp_path):
        pass


def test_a_lock_is_released_by_an_error_and_held_within_one_process_too(tmp_path):
    with lock.working_in(tmp_path, named="x"), pytest.raises(InputError, match=f"process {os.getpid()}"):
        free(tmp_path)
    with pytest.raises(ZeroDivisionError), lock.working_in(tmp_path, named="x"):
        raise ZeroDivisionError
    free(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[1]", b'{"process": 3}', b'{"since": "x"}'])
def test_what_a_dead_process_has_left_in_the_lock_file_is_nobodys(tmp_path, content):
    (tmp_path / lock.FILE).write_bytes(content)
    free(tmp_path)
    assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_goes_on_is_neither_resumed_nor_begun_by_another(tmp_path, hold, resume):
    arguments = ["data.name=digits", f"output={tmp_path / 'run'}"]
    recipe = load_recipe(arguments)
    (tmp_path / "run").mkdir()
    if resume:
        with run_directory.claim(recipe):
            pass
        recipe = load_recipe([*arguments, "resume=true"])
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    process = hold(tmp_path / "run")
    with pytest.raises(InputError, match=f"is in use: process {process.pid}"), run_directory.claim(recipe):
        pass
    process.kill()
    process.wait()
    assert [p.name for p in sorted((tmp_path / "run").iterdir())] == sorted({*before, lock.FILE})
    with run_directory.claim(recipe) as (_, run_dir):
        assert run_dir == tmp_path / "run"


def test_a_directory_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run", "/proc/none/run", "/dev/null/x"):
        recipe = contract.recipe_for("ressl", output=str(output))
        with (
            pytest.raises(InputError, match=r"output=.*(not empty|cannot be made)"),
            run_directory.claim(recipe),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"
