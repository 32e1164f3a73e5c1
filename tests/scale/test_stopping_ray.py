"""Commands that Ray works for, stopped or without a disk to write to: whole processes, each with a Ray of its own."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from places import ROOT

from raysurl import metrics

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = [
    "method.hidden=32", "method.dim=16", "method.queue_size=128", "data.limit=256", "train.batch_size=32",
    "eval.every_epochs=0", "eval.protocols=[knn]", "eval.baselines=false", "log.tensorboard=false",
    "checkpoint.every_epochs=0", "train.epochs=60",
]  # fmt: skip
SPACE = {
    "title": "Small and long enough to be stopped",
    "recipe": "ressl/digits",
    "fixed": {
        "method.hidden": 32, "method.dim": 16, "method.queue_size": 128, "data.limit": 128, "train.batch_size": 16,
        "train.epochs": 60, "eval.every_epochs": 0, "eval.protocols": ["knn"], "eval.baselines": False,
    },
    "axes": {"method.tau_teacher": [0.03, 0.04]},
    "objectives": {"eval/knn_top1": "max"},
    "seeds": [0],
}  # fmt: skip


@contextlib.contextmanager
def begun(*arguments, cwd):
    """`python -m raysurl` in its own process group, as a shell starts it, which joins no Ray that is here."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
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
    return [line for line in metrics.read(run_dir / "metrics.jsonl") if "train/loss" in line]


def wait_for(what, process, seconds=150):
    deadline = time.monotonic() + seconds
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    assert what()


def last_line(err):
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def again(line, cwd):
    """What the last line says to go on with, done."""
    words = shlex.split(line.rpartition(": ")[2])
    assert words[:3] == ["python", "-m", "raysurl"]
    with begun(*words[3:], cwd=cwd) as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(
    ("signum", "group", "runtime"),
    [(signal.SIGINT, True, "ray"), (signal.SIGTERM, False, "ray"), (signal.SIGINT, False, "local")],
)
def test_a_run_that_is_stopped_saves_and_says_how_to_go_on(tmp_path, signum, group, runtime):
    run_dir = tmp_path / "my run"
    asked = [*SETTINGS, f"runtime={runtime}", "output=my run"]
    with begun("pretrain", *asked, cwd=tmp_path) as process:
        wait_for(lambda: len(losses(run_dir)) > 20, process)
        (os.killpg if group else os.kill)(process.pid, signum)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + signum
    line = last_line(err)
    assert f"'output={run_dir}' resume=true" in line
    (stored,) = (run_dir / "checkpoints").glob("step-*")
    reached = int(stored.name.removeprefix("step-"))
    assert reached >= 20
    assert [entry["step"] for entry in losses(run_dir)] == list(range(reached))
    again(line, tmp_path)
    assert [entry["step"] for entry in losses(run_dir)] == list(range(480))
    assert json.loads((run_dir / "results.json").read_text())["finished"]


def test_a_sweep_that_is_stopped_saves_its_trials_and_says_how_to_go_on(tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    directory = tmp_path / "my sweep"
    with begun("sweep", "space=space.yaml", "output=my sweep", cwd=tmp_path) as process:
        wait_for(lambda: any(len(losses(trial)) > 20 for trial in directory.glob("trials/*")), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 143
    assert any(directory.glob("trials/*/checkpoints/step-*"))
    said = again(last_line(err), tmp_path)
    assert "report.html" in said
    outcomes = [json.loads(path.read_text())["state"] for path in directory.glob("trials/*/trial.json")]
    assert outcomes == ["finished", "finished"]
    events = [metrics.read(path) for path in directory.glob("trials/*/metrics.jsonl")]
    assert any("resumed at step" in line.get("event", "") for lines in events for line in lines)


def test_a_sweep_without_one_finished_trial_is_a_failure(tmp_path):
    diverging = {**SPACE["fixed"], "train.optimizer.lr": 1e30, "train.epochs": 2}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "fixed": diverging}))
    with begun("sweep", "space=space.yaml", "output=s", cwd=tmp_path) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "finished (2 diverged)" in last_line(err)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(where)]
    if os.getuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("file systems are mounted by root alone")
    yield where
    subprocess.run(["umount", "-l", str(where)], capture_output=True, check=False)


def fill(path):
    """Until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


@pytest.mark.parametrize("runtime", ["ray", "local"])
@pytest.mark.parametrize("how", ["full", "vanished"])
def test_a_run_without_a_disk_to_write_to_ends_with_that_sentence(tmp_path, small_disk, runtime, how):
    run_dir = small_disk / "run"
    asked = [*SETTINGS, f"runtime={runtime}", "checkpoint.every_epochs=2", f"output={run_dir}"]
    with begun("pretrain", *asked, cwd=tmp_path) as process:
        wait_for(lambda: len(losses(run_dir)) > 20, process)
        if how == "full":
            fill(small_disk / "filler")
        else:
            subprocess.run(["umount", "-l", str(small_disk)], check=True)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    line = last_line(err)
    assert str(run_dir) in line
    assert ("disk full" if how == "full" else "gone") in line
    if how == "full":
        assert shutil.disk_usage(small_disk).free < 1 << 20
        (small_disk / "filler").unlink()
        with begun("pretrain", f"output={run_dir}", "resume=true", cwd=tmp_path) as process:
            _, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
