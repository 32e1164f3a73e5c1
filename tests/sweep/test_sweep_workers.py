"""Trials of several workers: Ray Train inside a trial, killed, compared with a plain run, and ended by its watch."""

import json
import os
import signal
import time

import pytest
import yaml
from killing import kill_holder_once_saved

pytest.importorskip("ray")
pytest.importorskip("optuna")


from raysurl import metrics
from raysurl.commands import sweep
from raysurl.errors import InputError, RunError
from raysurl.sweep.trial import CollapsedError

pytestmark = pytest.mark.slow

SPACE = {
    "title": "Small, on one worker and on two",
    "recipe": "ressl/digits",
    "fixed": {
        "method.hidden": 32, "method.dim": 16, "method.queue_size": 128, "data.limit": 128, "train.batch_size": 16,
        "train.epochs": 3, "train.schedule.warmup_epochs": 1, "eval.every_epochs": 0, "eval.protocols": ["knn"],
        "eval.baselines": False, "checkpoint.every_steps": 4,
    },
    "axes": {"scale.workers": [1, 2]},
    "objectives": {"eval/knn_top1": "max"},
    "seeds": [0],
}  # fmt: skip


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "workers.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def test_a_grid_over_workers_whose_worker_is_killed_equals_one_process(ray_session, space, tmp_path):
    thread, killed = kill_holder_once_saved(tmp_path / "s", ".workers.lock")
    sweep.main([f"space={space}", f"output={tmp_path / 's'}"])
    thread.join()
    assert len(killed) == 1
    trials = {
        json.loads((p / "results.json").read_text())["world_size"]: p
        for p in (tmp_path / "s/trials").iterdir()
    }
    outcomes = {n: json.loads((p / "trial.json").read_text()) for n, p in trials.items()}
    assert {n: (o["state"], o["epochs"]) for n, o in outcomes.items()} == {
        1: ("finished", 3),
        2: ("finished", 3),
    }
    assert "resumed at step" in (trials[2] / "metrics.jsonl").read_text()
    assert not (trials[2] / "ray").exists()
    alone, together = dict(losses(trials[1])), dict(losses(trials[2]))
    assert list(together) == list(alone)
    # sums in another order, whose last digits grow from step to step
    assert list(together.values())[:12] == pytest.approx(list(alone.values())[:12], rel=1e-4)
    assert list(together.values()) == pytest.approx(list(alone.values()), rel=1e-2)
    knn = [outcomes[n]["metrics"]["eval/knn_top1"] for n in (1, 2)]
    assert knn[1] == pytest.approx(knn[0], abs=1)


def test_more_workers_than_the_nodes_hold_is_an_error_not_a_hang(ray_session, space, tmp_path):
    with pytest.raises(
        InputError, match=r"scale\.workers=2 needs 2 CPUs and 0 GPUs for each .* at most 1 of them"
    ):
        sweep.main([f"space={space}", f"output={tmp_path / 's'}", "cpus=2"])
    assert not (tmp_path / "s").exists()


def test_room_is_counted_in_workers(ray_session, space):
    from raysurl.scale import share
    from raysurl.sweep.plan import SweepRequest, make_plan
    from raysurl.sweep.space import read_space

    plan = make_plan(SweepRequest(read_space(str(space)), "full"))
    assert share.check(plan, share.Resources()).concurrent == 1
    assert share.check(plan, share.Resources(cpus=0.5)).concurrent == 2
    only_one = make_plan(SweepRequest(read_space(str(space)), "full", only={"scale.workers": ("1",)}))
    assert share.check(only_one, share.Resources()).concurrent == 2
    assert [trial.recipe.runtime for trial in plan.trials] == ["local", "ray"]
    assert plan.trials[0].id != plan.trials[1].id


def test_what_the_killed_process_of_a_trial_leaves_is_given_back(ray_session):
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    from raysurl.scale.line import open_line

    class Trial:
        def begin(self):
            open_line(12345)
            group = placement_group([{"CPU": 1, "memory": 12345}] * 2)
            assert group.wait(30)
            return os.getpid(), group.id.hex()

    trial = ray.remote(Trial).options(num_cpus=0).remote()
    pid, group = ray.get(trial.begin.remote())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while placement_group_table()[group]["state"] != "REMOVED":
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Watch:
    """Ends the trial after its second epoch."""

    def __init__(self):
        self.starts, self.epochs = 0, []

    def start(self):
        self.starts += 1

    def __call__(self, metrics, latest):
        self.epochs.append((metrics["epoch"], latest))
        if metrics["epoch"] == 2:
            raise CollapsedError("after 2")


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_watch_sees_each_epoch_and_ends_the_workers(ray_session, tmp_path, monkeypatch, epochs):
    """With the worker group played by a function: what it says, what it is answered, what it fails with."""
    import ray

    from raysurl.scale import nested
    from raysurl.scale.cluster import Placement

    answers = []

    def fit(recipe, placement, prepared, run_dir, *, line):
        for said in [None, None, *(({"epoch": i + 1}, {"step": i}) for i in range(epochs))]:
            answers.append(ray.get(line.report.remote(said)))
            if not answers[-1]:
                answers.append(
                    ray.get(line.report.remote(None))
                )  # a group that starts again is sent away too
                return
        raise RunError("a worker failed")

    monkeypatch.setattr(nested, "fit", fit)
    watch = Watch()
    with pytest.raises(RunError if epochs == 1 else CollapsedError):
        nested.on_workers(None, Placement(2, 1, 0))(None, tmp_path, watch)
    assert watch.starts == 2  # a group that lost a worker starts again
    assert watch.epochs == [(1, {"step": 0}), (2, {"step": 1})][:epochs]
    assert answers == ([True] * 3 if epochs == 1 else [True] * 3 + [False] * 2)
