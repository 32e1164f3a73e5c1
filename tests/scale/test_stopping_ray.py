"""Commands that Ray works for, stopped or without a disk to write to, with a Ray of their own or the tests'."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from places import ROOT

from raysurl import cli, metrics
from raysurl.commands import sweep
from raysurl.recipe import load_recipe
from raysurl.run import pretrain
from raysurl.train import trainer

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = [
    "method.hidden=32", "method.dim=16", "method.queue_size=128", "data.limit=256", "train.batch_size=32",
    "eval.every_epochs=0", "eval.protocols=[knn]", "eval.baselines=false", "log.tensorboard=false",
    "checkpoint.every_epochs=1", "checkpoint.keep=1", "scale.workers=1",
    "train.epochs=20",  # long enough to be ended twice on a machine that is quiet
]  # fmt: skip
RUNTIMES = pytest.mark.parametrize("runtime", ["ray", "local"])
SPACE = {
    "title": "Small and long enough to be stopped",
    "recipe": "ressl/digits",
    "fixed": {
        "method.hidden": 32, "method.dim": 16, "method.queue_size": 128, "data.limit": 128, "train.batch_size": 16,
        "train.epochs": 30, "eval.every_epochs": 0, "eval.protocols": ["knn"], "eval.baselines": False,
    },
    "axes": {"method.tau_teacher": [0.03, 0.04]},
    "objectives": {"eval/knn_top1": "max"},
    "seeds": [0],
}  # fmt: skip


@contextlib.contextmanager
def begun(*arguments, cwd, ray="local"):
    """`python -m raysurl` in its own process group, as a shell starts it, with a Ray of its own or of an address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray}
    process = subprocess.Popen(
        [sys.executable, "-m", "raysurl", *arguments],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def results(run_dir):
    return json.loads((run_dir / "results.json").read_text())["metrics"]


def wait_for(what, process, seconds=150):
    deadline = time.monotonic() + seconds
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    assert what()


def last_line(err):
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def going_on(line):
    """The words after `python -m raysurl` of what the last line says to go on with."""
    words = shlex.split(line.rpartition(": ")[2])
    assert words[:3] == ["python", "-m", "raysurl"]
    return words[3:]


@pytest.fixture
def cluster(ray_session):
    """The address of the tests' own cluster."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB, or None where none can be mounted."""
    where = tmp_path / "my disk"
    where.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(where)]
    may = not os.getuid() and subprocess.run(mounted, capture_output=True, check=False).returncode == 0
    yield where if may else None
    subprocess.run(["umount", "-l", str(where)], capture_output=True, check=False)


def fill(path):
    """Until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def befall(monkeypatch, runtime, run_dir, after, disaster):
    """`disaster` befalls a run of this process once it has done more steps than `after`: at that very step without
    Ray, and from beside it where the steps are done by workers."""
    once = iter([disaster])
    if runtime == "local":
        step = trainer.train_step

        def train_step(run, *given):
            if run.step > after:
                next(once, lambda: None)()
            return step(run, *given)

        monkeypatch.setattr(trainer, "train_step", train_step)
        return

    def watch():
        deadline = time.monotonic() + 150
        while len(losses(run_dir)) <= after and time.monotonic() < deadline:
            time.sleep(0.05)
        disaster()

    threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def ended(cluster, capfd):
    """A command in this process, on the tests' own Ray: its exit code, and what it said."""

    def end(*arguments):
        try:
            cli.run_named(arguments[0], arguments[1:])
        except SystemExit as end:
            return end.code, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    where = tmp_path_factory.mktemp("whole") / "run"
    return pretrain(load_recipe([*SETTINGS, "runtime=local", f"output={where}"]))


@RUNTIMES
def test_a_run_goes_on_after_a_signal_and_after_a_full_disk(
    undisturbed, tmp_path, small_disk, ended, monkeypatch, runtime
):
    """It begins with a Ray of its own, goes on in a cluster that others use too, and ends without one, as a local run
    ends that nothing had happened to, to the last bit. Ctrl-C reaches all of a shell's process group, a termination
    one process.
    """
    run_dir = (small_disk or tmp_path) / "my run"
    asked = [*SETTINGS, f"runtime={runtime}", f"output={run_dir}"]
    signum, send = (signal.SIGINT, os.killpg) if runtime == "ray" else (signal.SIGTERM, os.kill)
    with begun("pretrain", *asked, cwd=tmp_path) as process:
        wait_for(lambda: len(losses(run_dir)) > 20, process)
        send(process.pid, signum)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + signum
    line = last_line(err)
    assert f"'output={run_dir}' resume=true" in line
    (stored,) = (run_dir / "checkpoints").glob("step-*")
    reached = int(stored.name.removeprefix("step-"))
    assert reached >= 20
    assert [step for step, _ in losses(run_dir)] == list(range(reached))

    if small_disk:
        befall(monkeypatch, runtime, run_dir, reached, lambda: fill(small_disk / "filler"))
        code, err = ended(*going_on(line))
        assert code == 1
        assert "disk full" in last_line(err)
        assert str(run_dir) in last_line(err)
        (small_disk / "filler").unlink()

    code, err = ended(*going_on(line), "runtime=local")
    assert code == 0, err
    assert losses(run_dir) == losses(undisturbed)
    assert results(run_dir) == results(undisturbed)


@RUNTIMES
def test_a_run_whose_disk_vanishes_says_that_it_is_gone(small_disk, ended, monkeypatch, runtime):
    if not small_disk:
        pytest.skip("file systems are mounted by root alone")
    run_dir = small_disk / "run"
    umount = ["umount", "-l", str(small_disk)]
    befall(monkeypatch, runtime, run_dir, 20, lambda: subprocess.run(umount, check=True))
    code, err = ended("pretrain", *SETTINGS, f"runtime={runtime}", f"output={run_dir}")
    assert code == 1
    assert str(run_dir) in last_line(err)
    assert "gone" in last_line(err)


def test_a_sweep_that_is_stopped_saves_its_trials_and_says_how_to_go_on(
    cluster, tmp_path, monkeypatch, capsys
):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    directory = tmp_path / "my sweep"
    with begun("sweep", "space=space.yaml", "output=my sweep", cwd=tmp_path, ray=cluster) as process:
        wait_for(lambda: any(len(losses(trial)) > 20 for trial in directory.glob("trials/*")), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 143
    assert any(directory.glob("trials/*/checkpoints/step-*"))
    monkeypatch.chdir(tmp_path)
    sweep.main([*going_on(last_line(err))[1:], "max_concurrent=1"])  # one process, which serves both trials
    assert "report.html" in capsys.readouterr().out
    outcomes = [json.loads(path.read_text())["state"] for path in directory.glob("trials/*/trial.json")]
    assert outcomes == ["finished", "finished"]
    events = [metrics.read(path) for path in directory.glob("trials/*/metrics.jsonl")]
    assert any("resumed at step" in line.get("event", "") for lines in events for line in lines)
