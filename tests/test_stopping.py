"""Signals: one exception, raised where nothing is half done; each way in which a command ends has its exit code."""

import errno
import os
import shlex
import signal
import sys
import threading
import time

import pytest

from raysurl import cli, stopping
from raysurl.errors import DivergedError, InputError, RunError, UndecidedError
from raysurl.stopping import StoppedError

BOTH = pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def send(signum):
    """To this process; Python's handler has run when it returns."""
    signal.raise_signal(signum)


@BOTH
def test_a_signal_is_one_exception_and_the_handlers_are_put_back(signum, code):
    before = [signal.getsignal(s) for s in stopping.SIGNALS]
    with pytest.raises(StoppedError) as raised, stopping.signals():
        send(signum)
    assert raised.value.exit_code == code
    assert [signal.getsignal(s) for s in stopping.SIGNALS] == before


@BOTH
def test_what_is_held_is_done_whole_however_deep(signum, code):
    done = []

    def work():
        with stopping.held():
            send(signum)
            with stopping.held():
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(StoppedError) as raised, stopping.signals():
        work()
    assert (done, raised.value.exit_code) == (["inner", "outer"], code)


def test_a_second_signal_does_not_wait_but_one_at_once_is_the_same_wish(monkeypatch):
    done = []

    def work():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        done.append("the same wish")
        monkeypatch.setattr(stopping, "AGAIN_S", 0)
        send(signal.SIGINT)
        done.append("too late")

    with pytest.raises(StoppedError), stopping.signals(), stopping.held():
        work()
    assert done == ["the same wish"]


def test_what_is_done_is_saved_whole_once(monkeypatch):
    saved = []

    def save():
        send(signal.SIGTERM)  # of a sender that signals the group too
        saved.append(1)

    with pytest.raises(StoppedError, match="by Ctrl-C"), stopping.signals(), stopping.saving(save):
        send(signal.SIGINT)
    assert saved == [1]


def test_nothing_is_saved_of_work_that_failed():
    with pytest.raises(RunError), stopping.signals(), stopping.saving(lambda: pytest.fail("saved")):
        raise RunError("x")


def test_a_signal_that_was_ignored_at_the_start_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's background do
    try:
        with stopping.signals():
            send(signal.SIGINT)
            with pytest.raises(StoppedError):
                send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_taken_back_from_a_library():
    with stopping.signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopping.renew()
        with pytest.raises(StoppedError):
            send(signal.SIGTERM)


def test_work_aside_raises_what_it_raises():
    with pytest.raises(InputError, match="so"):
        stopping.aside(_raising(InputError("so")), lambda signum: pytest.fail("stopped"))
    stopping.aside(lambda: None, lambda signum: pytest.fail("stopped"))


@BOTH
def test_work_aside_is_asked_to_end_and_waited_for(signum, code):
    asked, ended = threading.Event(), []
    numbers = []

    def work():
        os.kill(os.getpid(), signum)
        asked.wait(20)
        time.sleep(0.05)
        ended.append(1)

    def on_stop(number):
        numbers.append(number)
        asked.set()

    with pytest.raises(StoppedError) as raised, stopping.signals():
        stopping.aside(work, on_stop)
    assert (numbers, ended, raised.value.exit_code) == ([signum], [1], code)


def test_work_aside_that_does_not_end_is_left():
    def work():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)

    began = time.monotonic()
    with pytest.raises(StoppedError), stopping.signals():
        stopping.aside(work, lambda signum: None, patience_s=0.1)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(("text", "found"), [("2", 2), ("15", 15), ("", 15), ("x", 15), (None, None)])
def test_a_wish_left_for_another_process(tmp_path, text, found):
    if text is not None:
        (tmp_path / stopping.FILE).write_text(text)
    assert stopping.asked(tmp_path) == found
    stopping.forget(tmp_path)
    assert stopping.asked(tmp_path) is None
    stopping.forget(tmp_path / "nowhere")
    stopping.ask(tmp_path / "nowhere", 2)


def test_a_command_line_is_one_that_a_shell_reads_back(monkeypatch):
    words = ["output=my runs/é 'x'", "resume=true"]
    ways = {
        "/a b/pipelines/pretrain.py": ["python", "/a b/pipelines/pretrain.py"],
        "/x/raysurl/__main__.py": ["python", "-m", "raysurl", "pretrain"],
        "/usr/bin/raysurl": ["raysurl", "pretrain"],
    }
    for script, start in ways.items():
        monkeypatch.setattr(sys, "argv", [script])
        assert shlex.split(stopping.command_line("pretrain", words)) == [*start, *words]


# -------------------------------------------------------------------- exit codes


ENDINGS = {
    "input": (InputError("what was wrong"), 2, "what was wrong"),
    "run": (RunError("what failed"), 1, "what failed"),
    "diverged": (DivergedError("no number"), 1, "no number"),
    "undecided": (UndecidedError("too small"), 3, "too small"),
    "full": (OSError(errno.ENOSPC, "x", "/a/file"), 1, "/a/file cannot be written or read (disk full"),
    "quota": (OSError(errno.EDQUOT, "x"), 1, "disk full"),
    "read-only": (
        OSError(errno.EROFS, "x", b"/a/file"),
        1,
        "/a/file cannot be written or read (read-only disk",
    ),
    "gone": (OSError(errno.ESTALE, "x", "/a/file"), 1, "its file system is gone"),
    "io": (OSError(errno.EIO, "x", "/a/file"), 1, "Input/output error"),
    "interrupted": (KeyboardInterrupt(), 130, "stopped by Ctrl-C; start it again with: "),
    "int": (StoppedError(signal.SIGINT, "continue so"), 130, "stopped by Ctrl-C; continue so"),
    "term": (StoppedError(signal.SIGTERM, "continue so"), 143, "stopped by SIGTERM; continue so"),
}


@pytest.mark.parametrize(("error", "code", "said"), ENDINGS.values(), ids=ENDINGS)
def test_every_ending_has_its_exit_code_and_one_sentence(error, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(_raising(error, 1), ["a=b"], "pretrain")
    err = capsys.readouterr().err
    assert ended.value.code == code
    assert said in err
    assert len(err.splitlines()) == 1


@BOTH
def test_a_signal_to_a_command_ends_it_at_once(signum, code, capsys, monkeypatch):
    ends = []

    def end(number):
        ends.append(number)
        raise SystemExit(number)

    monkeypatch.setattr(stopping, "end", end)
    with pytest.raises(SystemExit):
        cli.run(lambda arguments: send(signum), ["output=a b"], "embed")
    assert ends == [code]
    assert "embed 'output=a b'" in capsys.readouterr().err


def test_a_fault_of_the_program_is_no_sentence():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda arguments: 1 // 0, [], "pretrain")
    with pytest.raises(ConnectionError):
        cli.run(_raising(ConnectionResetError(errno.ECONNRESET, "x"), 1), [], "pretrain")


def test_the_help_names_every_exit_code():
    for code in (0, 1, 2, 3, 130, 143):
        assert f"  {code} " in cli.EXIT_CODES


def _raising(error, count=0):
    def work(*arguments):
        assert len(arguments) == count
        raise error

    return work
