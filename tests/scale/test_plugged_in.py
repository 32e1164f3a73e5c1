"""What comes from outside the package under Ray: workers and the memory actor find it, or say why not."""

import json
import shutil
from functools import partial

import numpy as np
import plugging
import pytest
import ray

from raysurl import metrics
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.run import pretrain
from raysurl.scale import memory
from raysurl.scale import train as on_ray

SETTINGS = (
    *(
        "encoder.name=patches",
        "encoder.options={width: 8}",
        "data.name=stripes",
        "data.options={samples: 60}",
    ),
    *(
        "views.size=8",
        "train.batch_size=20",
        "train.epochs=2",
        "train.schedule.warmup_epochs=0",
        "method.dim=4",
    ),
    *("eval.protocols=[spread]", "eval.baselines=false", "eval.every_epochs=0", "log.tensorboard=false"),
    "scale.threads=1",
)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    monkeypatch.syspath_prepend(plugging.installed())


def trained(folder, *settings):
    run = pretrain(load_recipe([*SETTINGS, f"output={folder}", *settings]))
    lines = metrics.read(run / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return losses, json.loads((run / "results.json").read_text())


def test_a_package_trains_on_workers_as_it_does_without_ray(ray_session, tmp_path):
    expected, _ = trained(tmp_path / "local", "method.name=pulled", "runtime=local")
    found, results = trained(tmp_path / "ray", "method.name=pulled")
    assert found == expected
    assert results["runtime"] == "ray"
    assert "eval/spread" in results["metrics"]
    assert results["versions"]["raysurl-example"] == "1.2"


def test_the_memory_of_a_file_is_made_in_the_actor(ray_session, tmp_path):
    shutil.copy(plugging.PACKAGE / "raysurl_example" / "method.py", tmp_path / "mine.py")
    config = load_recipe([*SETTINGS, f"method.name={tmp_path}/mine.py:Pulled"]).method
    actor = memory.create(partial(config.memory, 60, 0))
    ray.get(actor.restore.remote(1, 0, None))
    state = ray.get(actor.state.remote(1, 0))
    ray.kill(actor)
    assert np.array_equal(state["keys"], config.memory(60, 0).keys)


def test_a_worker_that_has_not_the_file_says_so(ray_session, tmp_path, monkeypatch):
    shutil.copy(plugging.PACKAGE / "raysurl_example" / "method.py", tmp_path / "mine.py")
    begin = on_ray.fit

    def begun(*given, **more):  # as where the file is on the driver's node alone
        (tmp_path / "mine.py").unlink()
        return begin(*given, **more)

    monkeypatch.setattr(on_ray, "fit", begun)
    with pytest.raises(
        InputError, match=r"mine\.py: there is no such file on .*; every machine of a run reads it"
    ):
        trained(tmp_path / "run", f"method.name={tmp_path}/mine.py:Pulled", "method.queue_size=40")
