"""Real runs under Ray Train with the memory actor: equal to local ones, and they survive what is killed."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from raysurl import metrics
from raysurl.commands.pretrain import read_recipe
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

pytestmark = pytest.mark.slow

SETTINGS = (
    "method.hidden=32", "method.dim=16", "data.limit=256", "train.batch_size=32", "train.epochs=4",
    "eval.every_epochs=2", "eval.linear_epochs=2", "log.every_steps=2", "log.tensorboard=false",
)  # fmt: skip


def run(folder, *changes):
    return pretrain(load_recipe([*SETTINGS, f"output={folder}", *changes]))


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def values(run_dir):
    return json.loads((run_dir / "results.json").read_text())["metrics"]


def test_one_ray_worker_equals_the_local_run_bit_by_bit(ray_session, tmp_path):
    local = run(tmp_path / "local", "runtime=local")
    ray = run(tmp_path / "ray", "scale.workers=1")
    assert losses(ray) == losses(local)
    assert values(ray) == values(local)


@pytest.fixture(scope="module")
def undisturbed(ray_session, tmp_path_factory):
    return run(tmp_path_factory.mktemp("ray") / "undisturbed", "scale.workers=2", "checkpoint.every_steps=5")


def test_two_workers_begin_as_one_does_and_write_a_whole_run_directory(undisturbed):
    results = json.loads((undisturbed / "results.json").read_text())
    assert (results["world_size"], results["runtime"]) == (2, "ray")
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert (undisturbed / "encoder.safetensors").exists()
    assert [step for step, _ in losses(undisturbed)] == list(range(32))
    assert results["metrics"]["eval/knn_top1"] > 50


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


@pytest.mark.parametrize("victim", ["RayTrainWorker", "MemoryActor"])
def test_killing_a_worker_or_the_memory_actor_leaves_the_loss_curve_as_it_was(undisturbed, tmp_path, victim):
    folder = tmp_path / "run"
    thread, killed = _kill_when(
        lambda: (folder / "checkpoints" / "step-00000010").exists(),
        lambda command: f"ray::{victim}" in command,
    )
    run(folder, "scale.workers=2", "checkpoint.every_steps=5")
    thread.join()
    assert killed
    events = [line["event"] for line in metrics.read(folder / "metrics.jsonl") if "event" in line]
    # a worker's group starts again from its checkpoint; an actor's updates are replayed under a group that goes on
    assert any("resumed at step" in event for event in events) == (victim == "RayTrainWorker")
    assert losses(folder) == losses(undisturbed)
    assert values(folder) == values(undisturbed)


def test_resume_after_the_driver_was_gone_equals_undisturbed(undisturbed, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(undisturbed / "recipe.yaml", folder)
    shutil.copy(undisturbed / "manifest.parquet", folder)
    shutil.copy(undisturbed / "metrics.jsonl", folder)
    shutil.copytree(undisturbed / "checkpoints" / "step-00000030", folder / "checkpoints" / "step-00000030")
    pretrain(read_recipe([f"output={folder}", "resume=true"]))
    assert losses(folder) == losses(undisturbed)
    assert values(folder) == values(undisturbed)


def test_more_workers_than_the_nodes_hold_is_said_before_anything_starts(ray_session, tmp_path):
    with pytest.raises(InputError, match=r"scale\.workers=64 needs .* hold at most 2; use scale\.workers=2"):
        run(tmp_path / "run", "scale.workers=64", "train.batch_size=64")
    assert not (tmp_path / "run").exists()


RCL = (
    "method.name=rcl", "method.predictor_hidden=32", "method.queue_size=128", "method.warmup_epochs=1",
    "views.policies={view_1: digits, view_2: digits}", "scale.workers=2", "checkpoint.every_steps=5",
    "train.schedule.warmup_epochs=1", "memory.staleness=1",
)  # fmt: skip


def test_a_memory_that_answers_survives_the_loss_of_its_actor(ray_session, tmp_path):
    """RCL: keys chosen by the actor's clusters a step ahead; what is asked again after a kill is answered the same."""
    first = [*SETTINGS[1:], *RCL, "method.hidden=32", "recipe=recipe.yaml"]
    (tmp_path / "recipe.yaml").write_text(
        "data: {name: digits}\nencoder: {name: convnet}\nviews: {size: 8}\n"
    )
    settings = [a.replace("recipe=recipe.yaml", f"recipe={tmp_path}/recipe.yaml") for a in first]
    whole = pretrain(load_recipe([*settings, f"output={tmp_path}/whole"]))
    folder = tmp_path / "killed"
    thread, killed = _kill_when(
        lambda: (folder / "checkpoints" / "step-00000020").exists(),
        lambda command: "ray::MemoryActor" in command,
    )
    pretrain(load_recipe([*settings, f"output={folder}"]))
    thread.join()
    assert killed
    events = [line["event"] for line in metrics.read(folder / "metrics.jsonl") if "event" in line]
    assert any("rebuilt" in event for event in events)
    assert not any("resumed at step" in event for event in events)  # its updates were replayed
    assert losses(folder) == losses(whole)
