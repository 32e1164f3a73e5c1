"""One process at a time works in a run directory or a sweep: a second one is refused by name, a dead one is not."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import contract
import pytest
from places import ROOT

from raysurl.errors import InputError, RunError
from raysurl.recipe import load_recipe
from raysurl.train import lock, run_directory

HOLD = """
import fcntl, sys
from pathlib import Path
from raysurl.train import lock
if sys.argv[2] != "0":
    def flock(*args):
        raise OSError(int(sys.argv[2]), "no locks")
    fcntl.flock = flock
with lock.working_in(Path(sys.argv[1]), named="output"):
    print("held", flush=True)
    sys.stdin.read()
"""


def refuse_locks(monkeypatch, code):
    def flock(*args):
        raise OSError(code, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.fixture(params=[0, errno.ENOLCK], ids=["locks", "no locks"])
def hold(request, monkeypatch):
    """Starts a process that holds a directory until it is killed, on a file system that knows locks or none."""
    if request.param:
        refuse_locks(monkeypatch, request.param)
    started = []

    def start(directory):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory), str(request.param)],
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
    left = {p.name for p in (tmp_path / "run").iterdir()} - {lock.FILE + lock.HELD}
    assert left == {*before, lock.FILE}
    with run_directory.claim(recipe) as (_, run_dir):
        assert run_dir == tmp_path / "run"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK])
def test_without_locks_a_claim_is_made_held_and_taken_away_again(tmp_path, monkeypatch, code):
    refuse_locks(monkeypatch, code)
    for _ in range(2):
        with (
            lock.working_in(tmp_path, named="x"),
            pytest.raises(InputError, match=f"process {os.getpid()} on"),
        ):
            free(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]
    with pytest.raises(ZeroDivisionError), lock.working_in(tmp_path, named="x"):
        raise ZeroDivisionError
    free(tmp_path)


def claimed(directory, **changes):
    """A claim that another process has left there, or holds."""
    path = directory / (lock.FILE + lock.HELD)
    path.write_text(json.dumps({**json.loads(lock._who()), **changes}))
    return path


@pytest.mark.parametrize(
    "changes",
    [{"process": 2**22 + 7}, {"process": 2**80}, {"began": 1}, {"process": os.getppid(), "began": 1}],
    ids=["ended", "impossible", "another of its number", "its parent's number"],
)
def test_a_dead_process_of_this_host_holds_nothing(tmp_path, monkeypatch, changes):
    refuse_locks(monkeypatch, errno.ENOLCK)
    claimed(tmp_path, **changes)
    free(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"processes": "pid:[1]"}, {"process": 1, "began": None}]
)
def test_what_cannot_be_known_to_be_dead_is_not_and_the_sentence_says_what_to_remove(
    tmp_path, monkeypatch, changes
):
    refuse_locks(monkeypatch, errno.ENOLCK)
    path = claimed(tmp_path, **changes)
    with pytest.raises(
        InputError, match=rf"x is in use: process .* \(if it was killed, remove {path}\); wait"
    ):
        free(tmp_path)
    path.unlink()
    free(tmp_path)


def test_a_claim_without_a_name_is_nobodys_after_a_while(tmp_path, monkeypatch):
    """Its process died between making it and saying its name, or is just about to say it."""
    refuse_locks(monkeypatch, errno.ENOLCK)
    path = claimed(tmp_path)
    for content in (b"", b"{", b"[1]", b'{"host": 3}', b'{"host": 3, "process": Infinity}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="has not said its name"):
            free(tmp_path)
        os.utime(path, (0, 0))
        free(tmp_path)


def test_one_that_died_while_it_cleared_a_claim_is_in_nobodys_way(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.ENOLCK)
    turn = claimed(tmp_path, process=2**22 + 7).with_name(f"{lock.FILE}{lock.HELD}.clearing")
    turn.mkdir()
    os.utime(turn, (0, 0))
    free(tmp_path)
    assert not turn.exists()


def test_of_many_that_find_a_dead_claim_one_has_the_directory(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.ENOLCK)
    inside, most, refused = [], [], []

    def work(_):
        try:
            with lock.working_in(tmp_path, named="x"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        except InputError:
            refused.append(1)

    for _ in range(5):
        claimed(tmp_path, process=2**22 + 7)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    assert set(most) == {1}
    assert len(most) >= 5
    assert len(refused) + len(most) == 40


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
