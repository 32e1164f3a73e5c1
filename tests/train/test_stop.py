"""A run that is stopped at any moment saves, and goes on as if nothing had happened; what it shows hangs on no file."""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import contract
import pytest
import torch

from raysurl import metrics, stopping
from raysurl.data.names import open_samples
from raysurl.errors import InputError, StorageError
from raysurl.evaluate.evaluator import Evaluator
from raysurl.evaluate.expected import final_names, online_names
from raysurl.run import division_of
from raysurl.stopping import StoppedError
from raysurl.train import checkpoint, trainer

QUIET = {
    "checkpoint": {"every_epochs": 0},
    "log": {"every_steps": 2, "tensorboard": False},
    "eval": {"protocols": ["knn", "linear", "rankme"]},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing disturbed, by method: two epochs of five steps."""
    made = {}

    def of(name, **changes):
        if name not in made:
            recipe = contract.recipe_for(name, **(QUIET | changes))
            run_dir = tmp_path_factory.mktemp("runs") / "whole"
            contract.train(recipe, run_dir)
            made[name] = recipe, run_dir
        return made[name]

    return of


def results(run_dir):
    found = json.loads((run_dir / "results.json").read_text())
    return {key: found[key] for key in ("metrics", "best", "health")}


def losses(run_dir):
    lines = metrics.read(run_dir / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def state(run_dir, method):
    return checkpoint.load_newest(run_dir / "checkpoints", method=method)[0]


def assert_same_run(ours, theirs, method):
    assert losses(ours) == losses(theirs)
    assert results(ours) == results(theirs)
    a, b = (state(run_dir, method) for run_dir in (ours, theirs))
    assert a["tally"] == b["tally"]
    assert all(torch.equal(a["model"][name], value) for name, value in b["model"].items())


@contextmanager
def signal_at(monkeypatch, owner, name, turn, signum):
    """The `turn`-th call of a function first sends the signal to this process."""
    original, calls = getattr(owner, name), []

    def called(*arguments, **named):
        calls.append(name)
        if len(calls) == turn:
            signal.raise_signal(signum)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, called)
        yield


MOMENTS = {
    "the first step": (trainer, "train_step", 1),
    "within an epoch": (trainer, "train_step", 4),
    "the last step of an epoch": (trainer, "train_step", 5),
    "the first of the next": (trainer, "train_step", 6),
    "the last step": (trainer, "train_step", 10),
    "an evaluation": (Evaluator, "online", 1),
    "the last evaluation of an epoch": (Evaluator, "online", 2),
    "what follows an epoch": (trainer, "look_at_memory", 1),
    "a checkpoint": (checkpoint, "save", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", contract.slow_but(("within an epoch", "an evaluation", "a checkpoint"), MOMENTS)
)
def test_a_run_stopped_at_any_moment_saves_and_goes_on_as_if_nothing_had_been(
    whole, tmp_path, monkeypatch, moment
):
    recipe, undisturbed = whole("ressl")
    owner, name, turn = MOMENTS[moment]
    signum = signal.SIGINT if turn % 2 else signal.SIGTERM
    with (
        signal_at(monkeypatch, owner, name, turn, signum),
        pytest.raises(StoppedError) as raised,
        stopping.signals(),
    ):
        contract.train(recipe, tmp_path / "run")
    assert raised.value.signum == signum
    assert state(tmp_path / "run", "ressl") is not None
    events = [line["event"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "event" in line]
    assert any(event.startswith("stopped at step ") for event in events)
    contract.train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed, "ressl")


REBUILT = {
    "superand": {"train": {"rounds": 2, "epochs": 1}},
    "rcl": {"method": {"warmup_epochs": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", REBUILT)
def test_memory_that_is_rebuilt_before_an_epoch_is_rebuilt_once(whole, tmp_path, monkeypatch, method):
    recipe, undisturbed = whole(method, **REBUILT[method])
    # after the first epoch memory is looked at, rebuilt and looked at; then nothing is left but the second epoch
    for turn in (2, 1):
        with (
            signal_at(monkeypatch, trainer, "look_at_memory", turn, signal.SIGTERM),
            pytest.raises(StoppedError),
            stopping.signals(),
        ):
            contract.train(recipe, tmp_path / "run")
    contract.train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed, method)
    assert len(rebuilt(tmp_path / "run")) == len(rebuilt(undisturbed)) == 1


def rebuilt(run_dir):
    events = [line.get("event", "") for line in metrics.read(run_dir / "metrics.jsonl")]
    return [event for event in events if "rebuilt" in event]


@pytest.mark.slow
def test_a_trainer_of_another_process_is_stopped_by_a_file(whole, tmp_path, monkeypatch):
    recipe, undisturbed = whole("ressl")
    original = trainer.train_step

    def step(run, micro_batches):
        if run.step == 2:
            stopping.ask(tmp_path / "run", signal.SIGINT)
        return original(run, micro_batches)

    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(StoppedError) as raised:
        contract.train(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert raised.value.exit_code == 130
    assert 2 < state(tmp_path / "run", "ressl")["step"] <= 4  # with the block of steps
    stopping.forget(tmp_path / "run")
    contract.train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed, "ressl")


# -------------------------------------------------------------------- results of the state, not of a file


def _cut(path):
    path.write_bytes(path.read_bytes().rstrip(b"\n")[:-17])


def _some_lines(path):
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(line for i, line in enumerate(lines) if i % 3))


def _foreign(path):
    lines = path.read_bytes().splitlines(True)
    more = [b"17\n", b"null\n", b'{"loss": 3}\n', b"[" * 9999 + b"\n", b'{"step": true}\n', b"\0\xff\n"]
    path.write_bytes(b"".join([*lines[:5], *more, *lines[5:], b'{"step": "x", "train/loss": 9}\n']))


DAMAGES = {"cut": _cut, "some lines": _some_lines, "foreign": _foreign, "gone": os.unlink}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_changes_no_result(whole, tmp_path, monkeypatch, damage):
    recipe, undisturbed = whole("ressl")
    with (
        signal_at(monkeypatch, trainer, "train_step", 8, signal.SIGTERM),
        pytest.raises(StoppedError),
        stopping.signals(),
    ):
        contract.train(recipe, tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / "metrics.jsonl")
    contract.train(recipe, tmp_path / "run")
    assert results(tmp_path / "run") == results(undisturbed)
    found = [step for step, _ in losses(tmp_path / "run")]
    assert found == sorted(set(found))


@pytest.mark.slow
def test_a_state_of_before_the_tally_is_gone_on_from(whole, tmp_path):
    recipe, undisturbed = whole("ressl")
    (old,) = checkpoint.listing(undisturbed / "checkpoints")
    found = state(undisturbed, "ressl")
    for name in ("tally", "epochs_done", "refreshed_at"):
        del found[name]
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "checkpoints", found, step=old.step, method="ressl")
    contract.train(recipe, tmp_path / "run")
    ours, theirs = results(tmp_path / "run")["metrics"], results(undisturbed)["metrics"]
    assert {**ours, "train/loss": 0} == {**theirs, "train/loss": 0}


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["model", "optimizer", "memory", "seconds", "step"])
def test_a_state_that_lacks_a_part_is_passed_over(whole, tmp_path, lost):
    _, undisturbed = whole("ressl")
    found = state(undisturbed, "ressl")
    for step, part in ((3, None), (5, lost)):
        kept = {key: value for key, value in found.items() if key != part}
        checkpoint.save(tmp_path / "checkpoints", kept, step=step, method="ressl")
    older, (said,) = checkpoint.load_newest(tmp_path / "checkpoints", method="ressl")
    assert f"step-00000005 is damaged (its state lacks {lost})" in said
    assert lost in older


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [[1, 2], 3, None, {"step": "x"}, {"memory": 3}, {"step": -1}, {"model": []}]
)
def test_a_state_of_another_kind_is_passed_over(whole, tmp_path, wrong):
    _, undisturbed = whole("ressl")
    found = state(undisturbed, "ressl")
    checkpoint.save(tmp_path / "checkpoints", found, step=3, method="ressl")
    content = found | wrong if isinstance(wrong, dict) else wrong
    checkpoint.save(tmp_path / "checkpoints", content, step=5, method="ressl")
    _, (said,) = checkpoint.load_newest(tmp_path / "checkpoints", method="ressl")
    assert "step-00000005 is damaged (its " in said


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "optimizer", "memory", "tally"])
def test_a_part_of_another_recipe_is_one_sentence(whole, tmp_path, part):
    recipe, undisturbed = whole("ressl")
    found = state(undisturbed, "ressl") | {part: {"nothing": 1}}
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "checkpoints", found, step=10, method="ressl")
    with pytest.raises(InputError, match="does not fit this recipe: "):
        contract.train(recipe, tmp_path / "run")


def test_a_state_of_no_numbers_is_passed_over(whole, tmp_path):
    _, undisturbed = whole("ressl")
    found = state(undisturbed, "ressl")
    checkpoint.save(tmp_path / "checkpoints", found, step=3, method="ressl")
    name = next(name for name, value in found["model"].items() if value.is_floating_point())
    found["model"][name] = found["model"][name].clone().fill_(float("nan"))
    checkpoint.save(tmp_path / "checkpoints", found, step=5, method="ressl")
    older, (said,) = checkpoint.load_newest(tmp_path / "checkpoints", method="ressl")
    assert f"step-00000005 is damaged (its {name} holds values that are no numbers)" in said
    assert older["model"][name].isfinite().all()


# -------------------------------------------------------------------- names of metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ressl", "rcl"])
def test_the_metrics_of_a_run_are_those_that_are_said_before_it(whole, method):
    recipe, undisturbed = whole(method, **REBUILT.get(method, {}))
    division = division_of(
        *(open_samples(recipe.data, split, seed=recipe.seed) for split in ("train", "eval"))
    )
    found = set(results(undisturbed)["metrics"])
    assert {name for name in found if "lr" not in name.split("_")} == final_names(recipe, division)
    lines = metrics.read(undisturbed / "metrics.jsonl")
    assert online_names(recipe, division) <= {name for line in lines for name in line}


# -------------------------------------------------------------------- disks


@contextmanager
def no_file_above(limit):
    """As a disk that is full, without the rights that one would need: the system refuses to write further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300, 2_000, 10_000], ids=["record", "later", "checkpoint"])
def test_what_cannot_be_written_ends_a_run_in_one_sentence_with_its_path(whole, tmp_path, limit):
    recipe, _ = whole("ressl")
    with no_file_above(limit), pytest.raises(StorageError) as raised:
        contract.train(recipe, tmp_path / "run")
    assert str(tmp_path / "run") in str(raised.value)
    assert "File too large" in str(raised.value)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_directory_that_vanishes_ends_the_run(whole, tmp_path, monkeypatch, how):
    recipe, run_dir = whole("ressl")[0], tmp_path / "run"
    original = trainer.train_step

    def step(run, micro_batches):
        if run.step == 2:
            if how == "removed":
                shutil.rmtree(run_dir)
            else:
                run_dir.rename(tmp_path / "elsewhere")
            if how == "replaced":
                shutil.copytree(tmp_path / "elsewhere", run_dir)
        return original(run, micro_batches)

    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(StorageError, match=f"{run_dir}.* is gone"):
        contract.train(recipe, run_dir)
    assert how == "replaced" or not run_dir.exists()
