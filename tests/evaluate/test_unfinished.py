"""A fine-tuning that died goes on from what it left, and comes to what it would have come to."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from test_finetune import folder_of, task_of

from raysurl import stopping
from raysurl.commands import evaluate
from raysurl.encoder import encoder_of, write_encoder
from raysurl.evaluate import tuning, unfinished
from raysurl.evaluate.unfinished import ENDING, Unfinished
from raysurl.recipe import dump, load_recipe
from raysurl.recipe.tunings import Tuning


class KilledError(BaseException):
    """What a killed process looks like from inside: nothing after it runs."""


def dying(monkeypatch, at, error):
    """The loss of call number `at` is never computed; returns the calls."""
    loss, calls = tuning.F.cross_entropy, []

    def dies(*given):
        calls.append(1)
        if len(calls) == at:
            raise error
        return loss(*given)

    monkeypatch.setattr(tuning.F, "cross_entropy", dies)
    return calls


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_tuning_that_died_goes_on_as_if_it_had_not(optimizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)
    settings = Tuning(epochs=2, batch_size=24, optimizer=optimizer, weight_decay=0.01, layer_decay=0.7)
    task = task_of(policy="weak")
    index = task.bank[:100]

    def tuned(folder=tmp_path, lr=0.02):
        kept = replace(task, unfinished=Unfinished(folder))
        return weights(
            tuning.train(encoder_of(task.recipe), kept, settings, index, lr, 10.0)
        ), kept.unfinished

    whole, _ = tuned(folder=None)
    with monkeypatch.context() as patch:
        dying(patch, 6, KilledError())
        with pytest.raises(KilledError):
            tuned()
    (file,) = tmp_path.glob(f"*{ENDING}")
    left = file.read_bytes()
    with monkeypatch.context() as patch:
        calls = dying(patch, 99, KilledError())
        again, kept = tuned()
        assert len(calls) == 3  # of eight steps five were done
        assert torch.equal(again, whole)
        assert torch.equal(tuned()[0], whole)
        assert len(calls) == 3  # and now all are
        other, _ = tuned(lr=0.01)
        assert len(calls) == 3 + 8  # another training
    assert not torch.equal(other, whole)
    file.write_bytes(left[: len(left) // 2])
    assert torch.equal(tuned()[0], whole)
    assert "its training begins anew" in caplog.text
    kept.forget()
    assert not file.exists()
    assert len(list(tmp_path.glob(f"*{ENDING}"))) == 1  # of the other training, which is not this one's


def test_one_that_is_stopped_is_written_and_a_short_one_is_not(tmp_path, monkeypatch):
    task = replace(task_of(), unfinished=Unfinished(tmp_path))
    settings = Tuning(epochs=1, batch_size=24)
    with monkeypatch.context() as patch:
        dying(patch, 3, stopping.StoppedError(signal.SIGINT))
        with pytest.raises(stopping.StoppedError):
            tuning.train(encoder_of(task.recipe), task, settings, task.bank, 0.02, 1.0)
    (file,) = tmp_path.glob(f"*{ENDING}")
    assert torch.load(file, weights_only=True)["done"] == 2
    file.unlink()
    tuning.train(encoder_of(task.recipe), task, settings, task.bank, 0.02, 1.0)
    assert not list(tmp_path.iterdir())


AT_ONCE = """
import sys
from raysurl.commands import evaluate
from raysurl.evaluate import unfinished
unfinished.EVERY_S = 0.0
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_after_kill_9_the_same_command_goes_on(tmp_path, caplog):
    root = folder_of(tmp_path / "images", {"dark": 20, "light": 20})
    recipe = load_recipe(
        [f"data.path={root}", "encoder.name=convnet", "encoder.channels=[4, 8]", "views.size=8"]
    )
    runs = [tmp_path / name for name in ("whole", "killed")]
    for run in runs:
        run.mkdir()
        write_encoder(run, encoder_of(recipe), recipe)
        (run / "recipe.yaml").write_text(dump(recipe))
    asked = [
        "eval.protocols=[finetune]", "eval.baselines=false", "eval.finetune_epochs=40", "eval.finetune_batch_size=8",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, f"run={runs[1]}", *asked], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(runs[1].glob(f"*{ENDING}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (runs[1] / "evaluation.json").exists()
    with caplog.at_level("INFO", "raysurl.evaluate.unfinished"):
        for run in runs:
            evaluate.main([f"run={run}", *asked])
    assert caplog.text.count("goes on after step") == 1
    whole, killed = (json.loads((run / "evaluation.json").read_text()) for run in runs)
    assert whole == killed
    for run in runs:
        assert not list(run.glob(f"*{ENDING}"))
