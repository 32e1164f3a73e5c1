"""Without a GPU a run is one worker with all cores as threads, and how cores are counted and shared out."""

import os

import pytest

pytest.importorskip("ray")

from raysurl.data import machine
from raysurl.recipe import load_recipe
from raysurl.scale import cluster
from raysurl.train import local


@pytest.fixture(autouse=True)
def unasked(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def placed(monkeypatch, nodes, *arguments):
    monkeypatch.setattr(cluster, "alive", lambda: nodes)
    found = cluster.place(load_recipe(["data.path=x", *arguments]))
    return found.workers, found.cpus, found.gpus


@pytest.mark.parametrize(
    ("nodes", "arguments", "expected"),
    [
        ([{"CPU": 2.0}], [], (1, 2, 0)),
        ([{"CPU": 1.0}], [], (1, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 16.0}], [], (1, 16, 0)),
        ([{"CPU": 2.0}], ["recipe=ressl/digits"], (2, 1, 0)),  # the embedded job shows two
        ([{"CPU": 1.0}], ["recipe=ressl/digits"], (1, 1, 0)),
        ([{"CPU": 8.0}], ["recipe=ressl/digits"], (2, 4, 0)),
        ([{"CPU": 8.0}], ["scale.workers=4"], (4, 2, 0)),
        ([{"CPU": 8.0}], ["scale.threads=3"], (1, 3, 0)),
        ([{"CPU": 8.0}], ["scale.workers=2", "scale.threads=1"], (2, 1, 0)),
        ([{"CPU": 3.0}, {"CPU": 8.0}], ["scale.workers=4"], (4, 2, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}], [], (2, 1, 1)),
    ],
    ids=str,
)
def test_workers_and_threads_by_the_nodes_there_are(monkeypatch, nodes, arguments, expected):
    assert placed(monkeypatch, nodes, *arguments) == expected


def test_openmps_own_setting_bounds_the_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert placed(monkeypatch, [{"CPU": 8.0}]) == (1, 3, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "no number")
    assert placed(monkeypatch, [{"CPU": 8.0}]) == (1, 8, 0)


def test_cores_are_those_that_may_be_used(monkeypatch, tmp_path):
    there = len(os.sched_getaffinity(0))
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "nothing")
    assert machine.cores() == there
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "CPU_QUOTA", quota)
    for text, expected in (
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", there),
        ("9900000 100000", there),
    ):
        quota.write_text(text)
        assert machine.cores() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.cores() == 1


def test_a_local_run_takes_all_of_them_unless_told(monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 6)
    assert local.placed(load_recipe(["data.path=x"])).scale.threads == 6
    assert local.placed(load_recipe(["data.path=x", "scale.threads=2"])).scale.threads == 2
