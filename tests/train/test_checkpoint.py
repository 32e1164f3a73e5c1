"""Checkpoints: atomic, checked when read, pruned."""

import json
import pickle
import shutil

import pytest
import torch

from raysurl.errors import InputError, RunError
from raysurl.paths import sha256
from raysurl.train import checkpoint


def _state(step):
    x = torch.full((4,), step)
    return {"step": step, "seconds": 1.0, "model": {"x": x}, "optimizer": {}, "memory": None}


def _save(folder, step, metric=None, method="ressl"):
    return checkpoint.save(folder, _state(step), step=step, method=method, metric=metric)


def test_the_newest_whole_checkpoint_is_loaded(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path, step)
    state, passed_over = checkpoint.load_newest(tmp_path, method="ressl")
    assert (state["step"], passed_over) == (3, [])
    assert torch.equal(state["model"]["x"], torch.full((4,), 3))


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_state", "no_manifest", "empty_manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it_and_said(tmp_path, damage):
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    data = bytearray((newest / "state.pt").read_bytes())
    if damage == "truncate":
        (newest / "state.pt").write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        (newest / "state.pt").write_bytes(data)
    elif damage == "no_state":
        (newest / "state.pt").unlink()
    elif damage == "no_manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    state, (sentence,) = checkpoint.load_newest(tmp_path, method="ressl")
    assert state["step"] == 1
    assert "step-00000002 is damaged" in sentence
    assert "the one before it" in sentence


def test_a_partial_write_is_never_read_and_is_cleared_away(tmp_path):
    (tmp_path / ".partial-00000009-1").mkdir(parents=True)
    (tmp_path / ".partial-00000009-1" / "state.pt").write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path, method="ressl") == (None, [])
    _save(tmp_path, 1)
    checkpoint.prune(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step, metric in ((1, 50.0), (2, 70.0), (3, 60.0), (4, None), (5, 65.0)):
        _save(tmp_path, step, metric)
        checkpoint.prune(tmp_path, keep=2)
    assert [s.step for s in checkpoint.listing(tmp_path)] == [2, 4, 5]


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    _save(tmp_path, 1, method="mocov2")
    with pytest.raises(InputError, match="of method mocov2, this run trains ressl"):
        checkpoint.load_newest(tmp_path, method="ressl")


def test_a_full_disk_loses_no_finished_checkpoint(tmp_path, monkeypatch):
    _save(tmp_path, 1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        _save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.load_newest(tmp_path, method="ressl")[0]["step"] == 1
    assert not list(tmp_path.glob(".partial*"))


def test_a_pickled_object_is_not_loaded(tmp_path):
    path = _save(tmp_path, 1)
    (path / "state.pt").write_bytes(pickle.dumps(shutil.rmtree))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= {"bytes": (path / "state.pt").stat().st_size, "sha256": sha256(path / "state.pt")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="something else than tensors"):
        checkpoint.load_newest(tmp_path, method="ressl")
