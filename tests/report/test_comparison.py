"""The tables of kept comparisons: each row beside the untrained encoder, of the same quantity."""

import json

import pytest

from raysurl.commands.results import comparison


def kept(tmp_path, rows):
    row = {"seeds": 3, "seconds_per_epoch": 2.0, "measured": ["here"]}
    columns = {"kNN 200": "knn_top1"}
    rows = {name: {**row, "metrics": {k: [v, 1.0, 3] for k, v in m.items()}} for name, m in rows.items()}
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"command": "c", "columns": columns, "rows": rows}))
    lines = [line for line in comparison(path).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    return [dict(zip(lines[0].split(" | "), line.split(" | "), strict=False)) for line in lines[2:]]


@pytest.mark.parametrize("first", [True, False])
def test_rows_stand_beside_the_untrained_encoder_of_their_own_quantity(tmp_path, first):
    plain = {"a": {"eval/knn_top1": 40.0, "eval/untrained_knn_top1": 32.0}, "b": {"eval/knn_top1": 41.0}}
    memory = {"eval/knn_top1": 26.0, "eval/backbone_knn_top1": 33.0}
    of_memory = {"m": {**memory, "eval/untrained_knn_top1": 20.5}, "n": memory}
    rows = kept(tmp_path, {**of_memory, **plain} if first else {**plain, **of_memory})
    found = {row["| method"].strip("| "): row.get("untrained kNN 200") for row in rows}
    assert {name: found[name] for name in "abmn"} == {"a": "32.0", "b": "32.0", "m": "20.5", "n": "–"}
    (reference,) = [row["kNN 200"] for row in rows if "untrained" in row["| method"]]
    assert reference.startswith("32.0 ± 1.0")


def test_without_an_untrained_encoder_there_is_no_such_column(tmp_path):
    (row,) = kept(tmp_path, {"a": {"eval/knn_top1": 40.0}})
    assert "untrained kNN 200" not in row
