"""Whole local runs on the embedded digits: what is written, resume equality, and how a bad run ends."""

import json
import shutil
import signal
import subprocess
import sys
import time

import contract
import pytest
import torch
from image_files import parquet_file
from places import ROOT

from raysurl import cli, metrics
from raysurl.commands import pretrain
from raysurl.encoder import encoder_of, read_weights
from raysurl.errors import InputError, RunError
from raysurl.recipe import load_recipe
from raysurl.run import pretrain as run_pretrain
from raysurl.runtime import LocalRuntime
from raysurl.train import checkpoint, trainer


def run_cli(*arguments, cwd):
    command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    recipe = contract.recipe_for("ressl", checkpoint={"every_steps": 3, "keep": 9})
    contract.train(recipe, run_dir)
    return recipe, run_dir


def test_a_run_directory_holds_what_it_should(finished):
    _, run_dir = finished
    results = json.loads((run_dir / "results.json").read_text())
    wanted = {"train/loss", "eval/knn_top1", "eval/knn20_top1", "eval/linear_top1", "eval/lbfgs_top1"}
    wanted |= {
        "health/rankme",
        "eval/untrained_knn_top1",
        "eval/untrained_linear_top1",
        "eval/pixels_knn_top1",
    }
    assert wanted <= set(results["metrics"])
    assert results["finished"]
    assert results["num_samples"] == 80
    assert {"torch", "raysurl"} <= set(results["versions"])
    assert [step for step, _ in losses(run_dir)] == list(range(10))
    last_epoch = [loss for step, loss in losses(run_dir) if step >= 5]
    assert results["metrics"]["train/loss"] == pytest.approx(sum(last_epoch) / 5)
    assert [s.step for s in checkpoint.listing(run_dir / "checkpoints")] == [3, 5, 6, 9, 10]


def test_the_encoder_file_holds_the_backbone_alone_and_loads_by_itself(finished):
    recipe, run_dir = finished
    fresh = encoder_of(recipe)
    weights = read_weights(run_dir, fresh)
    assert set(weights) == set(fresh.state_dict())
    stored = checkpoint.load_newest(run_dir / "checkpoints", method="ressl")[0]["model"]
    assert all(torch.equal(weights[name], stored[f"encoder.{name}"]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [3, 5, 6])
def test_resumed_from_any_checkpoint_equals_uninterrupted_bit_by_bit(finished, tmp_path, kept):
    recipe, whole = finished
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    for stored in checkpoint.listing(whole / "checkpoints"):
        if stored.step <= kept:
            shutil.copytree(stored.path, part / "checkpoints" / stored.path.name)
    shutil.copy(whole / "metrics.jsonl", part / "metrics.jsonl")
    contract.train(recipe, part)
    assert losses(part) == losses(whole)
    ours, theirs = (checkpoint.load_newest(d / "checkpoints", method="ressl")[0] for d in (part, whole))
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    assert torch.equal(ours["memory"]["record"]["features"], theirs["memory"]["record"]["features"])


@pytest.mark.slow
def test_a_streaming_run_in_windows_resumes_bit_by_bit_and_says_how_well_it_mixes(tmp_path):
    parquet_file(tmp_path / "data" / "a.parquet", 80, row_group_size=8)
    data = {"name": "parquet", "path": str(tmp_path / "data"), "mode": "streaming", "window": 32, "reads": 1}
    recipe = contract.recipe_for(
        "ressl", data=data, checkpoint={"every_steps": 3, "keep": 9}, eval={"baselines": False}
    )
    contract.train(recipe, tmp_path / "whole")
    said = [line["event"] for line in metrics.read(tmp_path / "whole" / "metrics.jsonl") if "event" in line]
    assert any("a batch of 16 holds samples of 3 classes, in a full shuffle 3" in text for text in said)
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    first = next(c for c in checkpoint.listing(tmp_path / "whole" / "checkpoints") if c.step == 3)
    shutil.copytree(first.path, part / "checkpoints" / first.path.name)
    contract.train(recipe, part)
    assert losses(part) == losses(tmp_path / "whole")[3:]


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over_and_said_in_the_log(finished, tmp_path):
    recipe, whole = finished
    part = tmp_path / "part"
    shutil.copytree(whole / "checkpoints", part / "checkpoints")
    newest = part / "checkpoints" / "step-00000010" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    contract.train(recipe, part)
    events = [line["event"] for line in metrics.read(part / "metrics.jsonl") if "event" in line]
    assert any("step-00000010 is damaged" in event for event in events)
    assert any("resumed at step 9" in event for event in events)
    assert losses(part) == losses(whole)[9:]


def test_a_checkpoint_of_other_shapes_is_refused_in_one_sentence(finished, tmp_path):
    _, whole = finished
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    other = contract.recipe_for("ressl", method={"dim": 24, "hidden": 32})
    with pytest.raises(InputError, match="does not fit this recipe"):
        contract.train(other, tmp_path / "run")


def test_init_from_takes_encoder_weights_only(finished, tmp_path):
    recipe, run_dir = finished
    changed = recipe.model_copy(update={"init_from": str(run_dir)})
    run = contract.start(changed, tmp_path / "new")
    weights = read_weights(run_dir, run.method.encoder)
    assert run.step == 0
    assert all(torch.equal(v, weights[k]) for k, v in run.method.encoder.state_dict().items())
    assert all(torch.equal(v, weights[k]) for k, v in run.method.teacher.net[0].state_dict().items())


def test_a_non_finite_loss_stops_the_run_and_names_step_batch_and_term(tmp_path):
    train = {"batch_size": 16, "epochs": 2, "optimizer": {"lr": 1e30, "lr_batch": 0}}
    recipe = contract.recipe_for("ressl", train=train)
    with pytest.raises(RunError) as raised:
        contract.train(recipe, tmp_path / "run")
    assert "is not finite at step" in str(raised.value)
    assert "train/relation" in str(raised.value)
    assert "sample indices" in str(raised.value)
    state, _ = checkpoint.load_newest(tmp_path / "run" / "checkpoints", method="ressl")
    assert state is None or all(v.isfinite().all() for v in state["model"].values())


def test_gradient_accumulation_reads_one_snapshot_and_pushes_once(tmp_path):
    whole = contract.start(contract.recipe_for("ressl"), tmp_path / "whole")
    parts = contract.start(
        contract.recipe_for("ressl", train={"batch_size": 16, "accumulate": 2}), tmp_path / "parts"
    )
    contract.steps(whole, 1)
    contract.steps(parts, 1)
    assert whole.memory.version == parts.memory.version == 1
    assert torch.equal(
        whole.memory.snapshot(slice(None))["index"], parts.memory.snapshot(slice(None))["index"]
    )


def test_staleness_one_reads_the_queue_one_update_later_and_resumes_exactly(tmp_path):
    recipe = contract.recipe_for("ressl", memory={"staleness": 1})
    run = contract.start(recipe, tmp_path / "run")
    contract.steps(run, 1)
    assert (run.memory.snapshot(slice(None))["index"] == -1).all()
    contract.steps(run, 2)
    trainer.save(run)
    copy = contract.start(recipe, tmp_path / "run")
    assert contract.steps(copy, 2) == contract.steps(run, 2)


def test_views_made_in_workers_are_the_trainers_views(tmp_path):
    run = contract.start(contract.recipe_for("ressl"), tmp_path / "a")
    tree = {"size": 8, "mean": [0.3] * 3, "std": [0.38] * 3, "device": "workers"}
    other = contract.start(contract.recipe_for("ressl", views=tree), tmp_path / "b")
    assert contract.steps(run, 2) == contract.steps(other, 2)


@pytest.mark.slow
def test_print_shows_the_resolved_recipe_and_starts_nothing(tmp_path):
    done = run_cli("recipe=ressl/cifar10", "train.epochs=3", "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epochs: 3" in done.stdout
    assert "tau_teacher: 0.04" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data.name=folder", "data.path=nowhere"], "nowhere"),
        (["train.batch_size=4000"], "train.batch_size=4000"),
        (["encoder.name=resnet19"], "encoder.name=resnet19 is not known"),
        (["init_from=missing"], "missing"),
        (["resume=true", "output=missing"], "no run to resume"),
        (["output=taken"], "is not empty"),
        (["scale.workers=2"], "scale.workers=2 needs runtime=ray"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_is_written(
    tmp_path, arguments, said, monkeypatch, capsys
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("kept")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        cli.run(pretrain.main, ["runtime=local", *arguments])
    sentence = capsys.readouterr().err
    assert raised.value.code == 2
    assert said in sentence
    assert len(sentence.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["precious", "taken"]


def test_a_mistake_on_the_command_line_ends_without_a_traceback(tmp_path):
    done = run_cli("train.epoch=3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("raysurl: unknown recipe key train.epoch; did you mean train.epochs?")
    assert len(done.stderr.strip().splitlines()) == 1


def _newest_step(run_dir):
    return max((stored.step for stored in checkpoint.listing(run_dir / "checkpoints")), default=0)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(tmp_path):
    settings = [
        "runtime=local", "method.hidden=32", "train.epochs=12", "data.limit=256", "train.batch_size=32",
        "eval.every_epochs=0", "eval.linear_epochs=2", "checkpoint.every_steps=5", "log.every_steps=1",
    ]  # fmt: skip
    run_pretrain(load_recipe([*settings, f"output={tmp_path / 'whole'}"]))
    command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), *settings, "output=part"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while _newest_step(tmp_path / "part") < 30 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "part" / "results.json").exists()
    run_pretrain(pretrain.read_recipe([f"output={tmp_path / 'part'}", "resume=true"]))
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    ours, theirs = (
        json.loads((tmp_path / d / "results.json").read_text())["metrics"] for d in ("part", "whole")
    )
    assert ours == theirs


@pytest.mark.slow
def test_runtime_report_is_asked_once_per_epoch(tmp_path):
    class Counting(LocalRuntime):
        calls = 0

        def report(self, values):
            Counting.calls += 1

    recipe = contract.recipe_for("ressl")
    (tmp_path / "run").mkdir()
    trainer.train(recipe, Counting(torch.device("cpu")), *contract.sources(recipe), tmp_path / "run")
    assert Counting.calls == recipe.train.epochs
