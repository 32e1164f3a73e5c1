"""What is said of a run that goes on."""

import json
from types import SimpleNamespace

import pytest
import torch

from raysurl.train.saving import resumed


@pytest.mark.parametrize(
    ("begun", "said"), [(None, ""), (1, ""), (2, "it began with 2 threads and goes on with 1")]
)
def test_other_threads_than_a_run_began_with_are_said(begun, said, tmp_path):
    torch.set_num_threads(1)
    lines = [{"step": 0, "event": "begun"} | ({"threads": begun} if begun else {}), {"step": 3, "threads": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sentence = resumed(SimpleNamespace(step=3, total_steps=9, run_dir=tmp_path, record=object()))
    assert sentence.startswith("resumed at step 3 of 9")
    assert said in sentence
    assert ("scale.threads=2 keeps them" in sentence) == bool(said)
