"""Real runs under Ray Train with the memory actor: equal to local ones, and they survive what is killed."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import raysurl
from raysurl import metrics
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

pytestmark = pytest.mark.slow

SETTINGS = (
    "method.hidden=32", "method.dim=16", "data.limit=256", "train.batch_size=32", "train.epochs=4",
    "eval.every_epochs=2", "eval.protocols=[knn,linear,rankme]", "eval.linear_epochs=2",
    "log.every_steps=2", "log.tensorboard=false",
)  # fmt: skip
RCL = (
    "method.name=rcl", "method.predictor_hidden=32", "method.queue_size=128", "method.warmup_epochs=1",
    "views.policies={view_1: digits, view_2: digits}", "scale.workers=2", "checkpoint.every_steps=5",
    "train.schedule.warmup_epochs=1", "memory.staleness=1",
)  # fmt: skip


def run(folder, *changes):
    return pretrain(load_recipe([*SETTINGS, f"output={folder}", *changes]))


def run_rcl(folder, on_step=None):
    """On two workers, from Python; what its memory keeps is most of all methods', and its answers are asked for a step
    ahead."""
    recipe = folder.parent / "rcl.yaml"
    recipe.write_text("data: {name: digits}\nencoder: {name: convnet}\nviews: {size: 8}\n")
    settings = dict(setting.split("=", 1) for setting in [*SETTINGS, *RCL])
    done = raysurl.pretrain(recipe, settings=settings, output=folder, on_step=on_step, progress=False)
    return done.directory


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def values(run_dir):
    return json.loads((run_dir / "results.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def told():
    """The steps that a callback heard of."""
    return []


@pytest.fixture(scope="module")
def beside():
    """The processes of Ray in the middle of the run, as they call themselves."""
    return set()


@pytest.fixture(scope="module")
def undisturbed(ray_session, told, beside, tmp_path_factory):
    def on_step(line):
        told.append(line["step"])
        if line["step"] == 16:
            beside.update(started_by_raylet())

    return run_rcl(tmp_path_factory.mktemp("ray") / "undisturbed", on_step=on_step)


def started_by_raylet():
    """What the processes call themselves that the raylet of this process's Ray has started."""
    import ray

    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == raylet:
                yield (folder / "cmdline").read_bytes().split(b"\0")[0].decode().strip()


def test_two_workers_begin_as_one_does_and_write_a_whole_run_directory(undisturbed, told):
    results = json.loads((undisturbed / "results.json").read_text())
    assert (results["world_size"], results["runtime"]) == (2, "ray")
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert (undisturbed / "encoder.safetensors").exists()
    assert [step for step, _ in losses(undisturbed)] == told == list(range(32))
    assert results["metrics"]["eval/knn_top1"] > 50


def test_no_process_of_ray_that_does_nothing_for_the_run_takes_time_of_its_cores(undisturbed, beside):
    names = {name.partition("::")[2].partition(".")[0] for name in beside}
    assert {"RayTrainWorker", "MemoryActor", "TrainController"} <= names
    assert not names & {"PlacementGroupCleaner", "DatasetManager", "_StatsActor"}


def _kill_when(condition, find):
    """In a thread: once `condition()` holds, SIGKILL the first process whose command line `find` accepts."""
    killed = []

    def watch():
        deadline = time.monotonic() + 100
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    command = file.read()
            except OSError:
                continue
            if find(command):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(command)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, killed


def test_killing_a_worker_and_the_memory_actor_leaves_the_loss_curve_as_it_was(undisturbed, tmp_path):
    folder = tmp_path / "run"
    threads = [
        _kill_when(
            lambda step=step: (folder / "checkpoints" / f"step-{step:08d}").exists(),
            lambda command, victim=victim: f"ray::{victim}" in command,
        )
        for step, victim in ((10, "RayTrainWorker"), (20, "MemoryActor"))
    ]
    run_rcl(folder)
    for thread, killed in threads:
        thread.join()
        assert killed
    events = [line["event"] for line in metrics.read(folder / "metrics.jsonl") if "event" in line]
    # a worker's group starts again from its checkpoint; an actor's updates are replayed under a group that goes on,
    # and what is asked again is answered the same
    assert sum("resumed at step" in event for event in events) == 1
    assert any("rebuilt" in event for event in events)
    assert losses(folder) == losses(undisturbed)
    assert values(folder) == values(undisturbed)


def test_more_workers_than_the_nodes_hold_is_said_before_anything_starts(ray_session, tmp_path):
    with pytest.raises(InputError, match=r"scale\.workers=64 needs .* hold at most 2; use scale\.workers=2"):
        run(tmp_path / "run", "scale.workers=64", "train.batch_size=64")
    assert not (tmp_path / "run").exists()
