"""The tables of kept comparisons: each row beside the untrained encoder, of the same quantity."""

import json

import pytest

from raysurl.errors import InputError
from raysurl.sweep.ablations_page import html
from raysurl.sweep.comparisons import add_sweep, comparison, curve_chart, leaders
from raysurl.sweep.directory import claim, remember, trial_directory
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.space import space_from


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


# -------------------------------------------------------------------- while they train

CURVED = {
    "name": "curved",
    "title": "Curved",
    "recipe": "ressl/digits",
    "objectives": {"eval/knn_top1": "max"},
    "shown": {"kNN 200": "eval/knn_top1"},
    "fixed": {"eval.protocols": ["knn"]},
    "axes": {"row": {"grid": {"low": {"train.epochs": 4}, "high": {"train.epochs": 8}}}},
    "seeds": [0, 1],
}


@pytest.fixture
def kept_curves(tmp_path):
    """A sweep whose runs were evaluated after every other epoch of two steps, kept as a comparison."""
    where = tmp_path / "sweep"
    plan = make_plan(SweepRequest(space_from(CURVED), "full"))
    with claim(where, plan):
        for trial in plan.trials:
            remember(where, trial)
            there, epochs = trial_directory(where, trial), trial.recipe.train.epochs
            lines = [{"step": 2 * e, "epoch": e, "train/loss": 1.0} for e in range(1, epochs + 1)]
            knn = {e: 10.0 * e + trial.seed for e in range(2, epochs + 1, 2)}
            lines += [{"step": 2 * e, "eval/knn_top1": value} for e, value in knn.items()]
            (there / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            results = {"metrics": {"eval/knn_top1": knn[epochs]}, "num_samples": 1437, "images_per_s": 100.0}
            results |= {"hardware": "here", "threads": 1, "commit": "abc", "health": []}
            (there / "results.json").write_text(json.dumps(results))
    add_sweep(where, "curved", tmp_path)
    return tmp_path / "comparisons" / "curved.json"


def test_a_kept_sweep_has_the_curves_of_its_seeds(kept_curves):
    rows = json.loads(kept_curves.read_text())["rows"]
    assert rows["low"]["curves"] == {"eval/knn_top1": {"2": [20.0, 21.0], "4": [40.0, 41.0]}}
    lines = [line for line in comparison(kept_curves).splitlines() if line.startswith("|")]
    assert lines[-4:] == [
        "| method | 2 | 4 | 6 | 8 |", "|---|---|---|---|---|", "| low | 20.5 | 40.5 |  |  |",
        "| high | 20.5 | 40.5 | 60.5 | 80.5 |",
    ]  # fmt: skip


def test_curves_are_drawn_with_their_deviation_over_seeds(kept_curves):
    chart = curve_chart(kept_curves)
    assert all(name in chart for name in ("low", "high", "error_y", "kNN 200"))
    page = html([], [chart])
    assert "Learning curves" in page
    assert chart in page


def test_who_is_ahead_is_said_with_what_the_seeds_say():
    rows = {
        "early": {"2": [40.0, 42.0], "4": [43.0, 44.0], "10": [44.0, 44.0], "12": [1.0]},
        "late": {"2": [30.0, 31.0], "4": [42.0, 43.5], "10": [50.0, 43.0]},
    }
    assert leaders(rows) == (
        "Ahead: early after 2 to 4 (each of its seeds above every other run after 2 of these); late after 10 (each of"
        " its seeds above every other run after none of these)."
    )
    assert leaders({"alone": {"2": [1.0]}}).startswith(
        "Ahead: alone after 2 (each of its seeds above every other run"
    )


def test_rows_that_were_judged_after_other_epochs_are_not_compared():
    assert (
        leaders({"a": {"2": [1.0]}, "b": {"3": [2.0]}})
        == "No epoch is one after which all of them were judged."
    )


def test_without_curves_there_is_neither_chart_nor_table(tmp_path):
    kept(tmp_path, {"a": {"eval/knn_top1": 40.0}})
    assert curve_chart(tmp_path / "small.json") == ""
    assert "while training" not in comparison(tmp_path / "small.json")
    assert "Learning curves" not in html([], [""])


def test_a_damaged_comparison_is_named(tmp_path):
    (tmp_path / "bad.json").write_text(
        '{"rows": {"a": {"curves": {"eval/knn_top1": {"x": [1]}}}}, "columns": {"k": "knn_top1"}}'
    )
    with pytest.raises(InputError, match=r"bad\.json"):
        curve_chart(tmp_path / "bad.json")
