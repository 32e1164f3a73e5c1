"""Commands that Ray works for, stopped or without a disk to write to: whole processes, each with a Ray of its own."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from places import ROOT

from raysurl import metrics
from raysurl.commands import sweep
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = [
    "method.hidden=32", "method.dim=16", "method.queue_size=128", "data.limit=256", "train.batch_size=32",
    "eval.every_epochs=0", "eval.protocols=[knn]", "eval.baselines=false", "log.tensorboard=false",
    "checkpoint.every_epochs=1", "checkpoint.keep=1", "scale.workers=1",
]  # fmt: skip
# each long enough to be ended twice on a machine that is quiet
RUNTIMES = pytest.mark.parametrize(("runtime", "epochs"), [("ray", 12), ("local", 40)])
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


@RUNTIMES
def test_a_run_goes_on_after_a_signal_and_after_a_full_disk(tmp_path, small_disk, cluster, runtime, epochs):
    """It begins with a Ray of its own, goes on in a cluster that others use too, and ends without one, as a local run
    ends that nothing had happened to, to the last bit. Ctrl-C reaches all of a shell's process group, a termination
    one process.
    """
    run_dir = (small_disk or tmp_path) / "my run"
    asked = [*SETTINGS, f"train.epochs={epochs}", f"runtime={runtime}", f"output={run_dir}"]
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
        with begun(*going_on(line), cwd=tmp_path, ray=cluster) as process:
            wait_for(lambda: len(losses(run_dir)) > reached, process)
            fill(small_disk / "filler")
            _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "disk full" in last_line(err)
        assert str(run_dir) in last_line(err)
        (small_disk / "filler").unlink()

    with begun(*going_on(line), "runtime=local", cwd=tmp_path) as process:
        _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    whole = [*SETTINGS, f"train.epochs={epochs}", "runtime=local", f"output={tmp_path / 'whole'}"]
    undisturbed = pretrain(load_recipe(whole))
    assert losses(run_dir) == losses(undisturbed)
    assert results(run_dir) == results(undisturbed)


@RUNTIMES
def test_a_run_whose_disk_vanishes_says_that_it_is_gone(tmp_path, small_disk, cluster, runtime, epochs):
    if not small_disk:
        pytest.skip("file systems are mounted by root alone")
    run_dir = small_disk / "run"
    asked = [*SETTINGS, f"train.epochs={epochs}", f"runtime={runtime}", f"output={run_dir}"]
    with begun("pretrain", *asked, cwd=tmp_path, ray=cluster) as process:
        wait_for(lambda: len(losses(run_dir)) > 20, process)
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
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
    sweep.main(going_on(last_line(err))[1:])
    assert "report.html" in capsys.readouterr().out
    outcomes = [json.loads(path.read_text())["state"] for path in directory.glob("trials/*/trial.json")]
    assert outcomes == ["finished", "finished"]
    events = [metrics.read(path) for path in directory.glob("trials/*/metrics.jsonl")]
    assert any("resumed at step" in line.get("event", "") for lines in events for line in lines)
