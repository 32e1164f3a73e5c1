"""`ray job submit -- python pipelines/pretrain.py` and `… sweep.py` against a real job server of this machine."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

SMALL = [
    "train.epochs=1",
    "data.limit=512",
    "method.queue_size=256",
    "eval.linear_epochs=1",
    "eval.baselines=false",
]
RAY = str(Path(sys.executable).parent / "ray")


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _end_all(mark):
    """End the processes whose command line names `mark`, and their children, which rename their command line."""
    parents, found = {}, set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if mark in Path(f"/proc/{pid}/cmdline").read_text():
                found.add(pid)
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    for pid in found - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A head node with two CPUs and a private token; yields (address, environment)."""
    folder = tempfile.mkdtemp(prefix="rs")  # short: Ray puts sockets below it, whose paths are limited
    token = tmp_path_factory.mktemp("job") / "token"
    token.write_text("b" * 64)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | own
    gcs, dashboard, client = _free_port(), _free_port(), _free_port() % 1000 + 9000
    # each port its own: the other process of the suite may have a Ray of its own beside this one
    own_agents = [f"--dashboard-agent-{kind}-port={_free_port()}" for kind in ("listen", "grpc")]
    start = [RAY, "start", "--head", "--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}", *own_agents,
             f"--ray-client-server-port={client}", f"--temp-dir={folder}", "--disable-usage-stats"]  # fmt: skip
    subprocess.run(start, env=environment, check=True, capture_output=True, timeout=120)
    yield f"http://127.0.0.1:{dashboard}", environment
    _end_all(folder)  # `ray stop` would end every other Ray of this machine too
    shutil.rmtree(folder, ignore_errors=True)


def submitted(server, *script):
    """What a job of this checkout printed. Fails unless it ended well."""
    address, environment = server
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *script]
    for _ in range(20):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        if "No available agent" not in done.stderr:
            break
        time.sleep(3)  # the job server answers before its agent is there
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_main_job_runs_through_a_job_server(server, tmp_path):
    run_dir = tmp_path / "run"
    printed = submitted(server, "python", "pipelines/pretrain.py", f"output={run_dir}", *SMALL)
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["runtime"], results["world_size"], results["finished"]) == ("ray", 2, True)
    assert f"report: {run_dir / 'report.html'}" in printed


def test_a_sweep_of_two_trials_runs_through_a_job_server(server, tmp_path):
    space, directory = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text(
        "title: two\nrecipe: ressl/digits\naxes: {method.tau_teacher: [0.04, 0.05]}\nseeds: [0]\n"
        f"fixed: {{{', '.join(setting.replace('=', ': ') for setting in SMALL)}}}\n"
    )
    submitted(
        server, "python", "pipelines/sweep.py", f"space={space}", f"output={directory}", "max_concurrent=1"
    )
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("trials/*/trial.json"))]
    assert [outcome["state"] for outcome in found] == ["finished", "finished"]
    assert (directory / "report.html").is_file()
