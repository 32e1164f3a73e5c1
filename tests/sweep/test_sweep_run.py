"""Sweeps on Ray Tune: whole, shared by one copy of the data, and after `kill -9` of the driver or of a trial."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from killing import kill_holder_once_saved
from places import ROOT

pytest.importorskip("optuna")


from raysurl.commands import sweep
from raysurl.errors import InputError
from raysurl.sweep.results import read_sweep

pytestmark = pytest.mark.slow

SPACE = {
    "title": "Small and quick",
    "recipe": "ressl/digits",
    "fixed": {
        "method.hidden": 32, "method.dim": 16, "method.queue_size": 128, "data.limit": 128, "train.batch_size": 16,
        "train.epochs": 12, "train.schedule.warmup_epochs": 1, "eval.every_epochs": 0, "eval.protocols": ["knn"],
        "eval.baselines": False, "checkpoint.every_steps": 4,
    },
    "axes": {"method.tau_teacher": [0.03, 0.05]},
    "objectives": {"eval/knn_top1": "max"},
    "seeds": [0],
}  # fmt: skip


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "quick.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


def numbers(directory):
    return [(entry.labels, entry.values) for entry in read_sweep(directory).entries]


@pytest.fixture(scope="module")
def undisturbed(ray_session, space, tmp_path_factory):
    where = tmp_path_factory.mktemp("sweep") / "whole"
    sweep.main([f"space={space}", f"output={where}", "max_concurrent=2"])
    return where


def test_a_sweep_runs_every_cell_and_the_same_command_runs_nothing_again(undisturbed, space, capsys):
    assert all(len(values) == 1 for _, values in numbers(undisturbed))
    before = {p: p.stat().st_mtime_ns for p in undisturbed.glob("trials/*/trial.json")}
    assert len(before) == 2
    sweep.main([f"space={space}", f"output={undisturbed}"])
    assert "all 2 trials have ended already" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.glob("trials/*/trial.json")}
    assert not (undisturbed / "tune").exists()


def test_a_killed_trial_process_and_then_a_killed_driver_leave_the_table_as_it_was(
    undisturbed, space, tmp_path
):
    """The first trial's process is killed and started again; the driver, in the midst of the second trial; then the
    same command goes on.
    """
    where = tmp_path / "s"
    command = [sys.executable, str(ROOT / "pipelines" / "sweep.py"), f"space={space}", f"output={where}"]
    environment = {**os.environ, "RAY_ADDRESS": _address()}
    thread, killed = kill_holder_once_saved(where, ".lock")
    driver = subprocess.Popen([*command, "max_concurrent=1"], env=environment, stdout=subprocess.DEVNULL)
    thread.join()
    assert len(killed) == 1
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and len(list(where.glob("trials/*/trial.json"))) < 1:
        time.sleep(0.02)
    while time.monotonic() < deadline and not _saved(where):
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    ended = {p: p.read_text() for p in where.glob("trials/*/trial.json")}
    assert len(ended) == 1
    (first,) = (p.parent for p in ended)
    assert "resumed at step" in (first / "metrics.jsonl").read_text()
    sweep.main([f"space={space}", f"output={where}"])
    assert numbers(where) == numbers(undisturbed)
    assert {p: p.read_text() for p in ended} == ended
    events = [p.read_text() for p in where.glob("trials/*/metrics.jsonl")]
    assert all("resumed at step" in text for text in events)
    assert "Started 2 times" in (where / "table.md").read_text()


def _saved(directory):
    """Whether a trial that has not ended has a checkpoint."""
    unended = (p for p in directory.glob("trials/*") if not (p / "trial.json").exists())
    return any(any(p.glob("checkpoints/step-*")) for p in unended)


def _address():
    import ray

    return ray.get_runtime_context().gcs_address


def test_a_pruned_search_reaches_its_count(ray_session, tmp_path):
    axes = {"method.tau_teacher": {"uniform": [0.02, 0.06]}, "method.tau_student": {"choice": [0.1, 0.2]}}
    fixed = {**SPACE["fixed"], "eval.every_epochs": 1, "checkpoint.every_steps": 0}
    searched = {
        **SPACE, "axes": axes, "fixed": fixed, "search": "optuna", "trials": 6,
        "prune": {"kind": "asha", "signal": "health/rankme", "grace_epochs": 1, "reduction": 2},
    }  # fmt: skip
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(searched))
    sweep.main([f"space={tmp_path / 'open.yaml'}", f"output={tmp_path / 's'}"])
    states = [json.loads(p.read_text())["state"] for p in (tmp_path / "s").glob("trials/*/trial.json")]
    assert len(states) == 6
    assert {"finished", "pruned"} == set(states)
    assert "health/rankme, which needs no labels" in (tmp_path / "s" / "table.md").read_text()


def test_a_trial_in_which_a_fault_is_found_is_pruned_and_the_table_names_it(ray_session, tmp_path):
    """A learning rate that is far too high, beside one that is right."""
    sick = {
        **SPACE, "axes": {"train.optimizer.lr": [0.06, 50.0]}, "stop": {"after": 1.0},
        "fixed": {**SPACE["fixed"], "train.epochs": 7, "log.on_finding": "prune", "checkpoint.every_steps": 0},
    }  # fmt: skip
    (tmp_path / "sick.yaml").write_text(yaml.safe_dump(sick))
    where = tmp_path / "s"
    sweep.main([f"space={tmp_path / 'sick.yaml'}", f"output={where}", "max_concurrent=1"])
    found = {entry.labels: entry for entry in read_sweep(where).entries}
    assert [entry.states for entry in found.values()] == [{"finished": 1}, {"pruned": 1}]
    (pruned,) = found["50.0",].outcomes
    assert pruned.epochs < 7
    text = (where / "table.md").read_text()
    assert "| 50.0 | pruned (1) |" in text
    assert f"- Pruned: lr=50.0 seed 0. The first was found so: {pruned.reason.partition(': ')[2]}" in text
    assert "steps too large: one step moved the weights by" in text
    assert "steps too large" in (where / "report.html").read_text()


def test_resources_that_no_node_can_give_are_an_error_not_a_hang(ray_session, space, tmp_path):
    with pytest.raises(
        InputError, match=r"needs 64 CPUs and 0 GPUs and no node has them: the largest .* has 2 CPUs"
    ):
        sweep.main([f"space={space}", f"output={tmp_path / 's'}", "cpus=64"])
    with pytest.raises(InputError, match="1 GPUs and no node has them"):
        sweep.main([f"space={space}", f"output={tmp_path / 's'}", "gpus=1"])
    assert not (tmp_path / "s").exists()
