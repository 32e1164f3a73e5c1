"""The benchmark of a GPU runs to its end on a CPU, at tiny sizes, and keeps each row as it comes."""

import json
import os
import subprocess
import sys

import pytest
from places import ROOT


def rows_of(tmp_path, *arguments):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "pipelines/benchmark.py", "gpu", "tiny=true", f"out={out}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads(out.read_text())["rows"]


@pytest.mark.slow
def test_every_row(tmp_path):
    rows = rows_of(tmp_path, "seconds=900")
    (step,) = [row for row in rows if "simclr recorded" in row["row"]]
    assert step["images_per_s"] > 0
    assert step["gflop_per_image"] > 0
    assert step["recorded"] is False
    assert [row for row in rows if "error" in row] == []
    assert rows[-1]["row"] == "rcl with clusters"
