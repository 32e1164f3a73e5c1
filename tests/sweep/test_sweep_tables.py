"""Agreement with a paper, and the tables, pages and recipes that a sweep directory becomes."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_space import SMALL

pytest.importorskip("optuna")


from raysurl.commands import report as report_command
from raysurl.commands.reproduce import verdict
from raysurl.errors import InputError
from raysurl.recipe import dump
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep import tables
from raysurl.sweep.agreement import Pair, agree, spearman
from raysurl.sweep.claims import Claim
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.report import write_report
from raysurl.sweep.results import read_sweep
from raysurl.sweep.search import Grid, OpenSearch
from raysurl.sweep.space import space_from
from raysurl.sweep.trial import Outcome, write_outcome

numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12)


@given(numbers)
def test_spearman_and_ranks_are_scipys(pairs):
    a, b = zip(*pairs, strict=True)
    found = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic)


def test_collapsed_cells_rank_last_and_count_as_one_rank():
    pairs = [Pair("a", 90.0, 0.1, 89.0), Pair("b", -math.inf, None, 10.0), Pair("c", -math.inf, None, 10.1)]
    found = agree("", pairs)
    assert found.order[0] == "a"
    assert (found.same, found.pairs) == (2, 3)  # b and c tie here and do not in the paper
    assert found.spearman == pytest.approx(stats.spearmanr([3, 1.5, 1.5], [3, 1, 2]).statistic)
    assert "b (collapsed)" in found.order


def test_pairs_within_the_noise_are_told_from_clear_ones():
    noisy = [Pair("a", 90.0, 1.0, 80.0), Pair("b", 90.5, 1.0, 79.0), Pair("c", 70.0, 1.0, 60.0)]
    found = agree("g", noisy)
    assert (found.pairs, found.same, found.clear, found.clear_same) == (3, 2, 2, 2)
    said = found.sentence(0.4)
    assert said.startswith("g: over 3 cells the order agrees with the paper (Spearman 0.50")
    assert "2 of 3 pairs" in said
    assert "disagrees" in found.sentence(0.9)


def test_one_seed_a_cell_tells_nothing_of_the_noise():
    pairs = [Pair("a", 90.0, None, 80.0), Pair("b", 89.0, None, 79.0), Pair("c", 70.0, None, 60.0)]
    assert "one seed a cell, so that their noise is not known" in agree("", pairs).sentence(0.5)
    near = [Pair(p.name, 90.0 + i / 100, 1.0, p.paper) for i, p in enumerate(pairs)]
    assert "no pair differs by more than the noise" in agree("", near).sentence(0.5)


# -------------------------------------------------------------------- directories without training


def fill(directory, plan, value_of):
    """Outcomes as `value_of(trial)` has them, and the recipe of each trial."""
    claim(directory, plan)
    for trial in plan.trials:
        outcome = value_of(trial)
        sweep_directory.remember(directory, trial)
        where = sweep_directory.trial_directory(directory, trial)
        (where / "recipe.yaml").write_text(dump(trial.recipe))
        if outcome:
            write_outcome(where, outcome)


def outcome_of(trial):
    m = trial.recipe.method
    if m.tau_student == 0.2 and m.tau_teacher == 0.08:
        return Outcome("collapsed", "ended after epoch 2", {}, 1.0)
    value = 95 - 10 * m.tau_student - 20 * m.tau_teacher + 0.1 * trial.seed
    return Outcome("finished", "", {"eval/knn_top1": value}, 2.0, 0.1, 5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    where = tmp_path_factory.mktemp("sweep") / "small"
    fill(where, make_plan(SweepRequest(space_from(SMALL), "full")), outcome_of)
    return where


def test_each_cell_stands_beside_the_papers(directory, capsys):
    report_command.main([f"sweep={directory}"])
    text = (directory / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| 0.1 | 93.50 ± 0.10 (3) / 90 | 92.50 ± 0.10 (3) / 89 |" in text
    assert "| 0.2 | 92.50 ± 0.10 (3) / 88 | collapsed (3) / 10 |" in text
    half = 4.302653 * 0.1 / np.sqrt(3)  # Student's t of two degrees of freedom
    assert f"93.50 ± 0.10 (3), {93.5 - half:.2f} to {93.5 + half:.2f} at 95 %" in text
    assert "over 4 cells the order agrees with the paper" in text
    assert "12 trials (3 collapsed, 9 finished), 21 s of training" in text
    lines = list(csv.DictReader((directory / "table.csv").open()))
    assert [(r["mean"], r["seeds"], r["collapsed"], r["paper"]) for r in lines] == [
        ("93.5", "3", "0", "90"), ("92.5", "3", "0", "89"), ("92.5", "3", "0", "88"), ("", "0", "3", "10"),
    ]  # fmt: skip
    assert [(r["low"], r["high"]) for r in lines][::3] == [
        (f"{93.5 - half:.6g}", f"{93.5 + half:.6g}"),
        ("", ""),
    ]


@pytest.mark.slow
def test_the_page_has_curves_heat_maps_and_the_best_recipe_is_ready(directory):
    write_report(directory)
    page = (directory / "report.html").read_text()
    for part in ("Heat maps", "Curves", "Effect of each axis", "collapsed (3)", "The paper"):
        assert part in page
    charts = charts_of(page)
    assert {"Importance", "Parallel coordinates", "Contour of the two axes that matter most"} <= set(charts)
    means = charts["method.tau_student"]["data"][0]
    assert means["x"] == pytest.approx([92.5, 93.0], abs=0.01)  # without the cell that collapsed
    assert charts["method.tau_student"]["layout"]["xaxis"]["rangemode"] == "tozero"
    heat = charts["Here"]
    assert heat["data"][0]["z"] == [[93.5, 92.5], [92.5, None]]
    assert [note["text"] for note in heat["layout"]["annotations"]] == ["collapsed"]
    best = yaml.safe_load((directory / "best.yaml").read_text())
    assert (best["method"]["tau_student"], best["method"]["tau_teacher"]) == (0.1, 0.03)
    assert "output" not in best


def charts_of(page):
    found = re.findall(r'<figcaption><b>(.*?)</b>.*?application/json">(.*?)</script>', page)
    return {title: json.loads(data) for title, data in found}


@pytest.mark.slow
def test_trials_are_sorted_and_lead_to_their_reports_with_intervals(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "s")
    sweep = read_sweep(tmp_path / "s")
    best, _ = sweep.best()
    where = tmp_path / "s" / "trials" / best
    (where / "report.html").touch()
    (where / "results.json").write_text(json.dumps({"intervals": {"eval/knn_top1": [91.5, 95.25]}}))
    write_report(tmp_path / "s")
    table = re.search(r"<table data-sort.*?</table>", (tmp_path / "s" / "report.html").read_text())[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table)[1:]
    assert len(rows) == 12
    values = [float(v) for v in re.findall(r'strong" data-value="([\d.]+)"', table)]
    assert values == sorted(values, reverse=True)
    assert len(values) == 9
    assert [">collapsed<" in row for row in rows] == [False] * 9 + [True] * 3
    assert table.count("<a ") == 1
    row = next(row for row in rows if "<a " in row)
    assert f'<a href="trials/{best}/report.html">' in row
    assert "<small>91.5 to 95.25</small>" in row


def test_a_grid_of_one_axis_has_no_contour_and_one_trial_no_study(tmp_path):
    plan = make_plan(
        SweepRequest(space_from({**SMALL, "axes": {"method.tau_student": [0.1, 0.2]}, "paper": {}}), "full")
    )
    alone = plan.trials[0].id
    fill(tmp_path / "a", plan, outcome_of)
    fill(tmp_path / "b", plan, lambda trial: outcome_of(trial) if trial.id == alone else None)
    for where, expected in (("a", True), ("b", False)):
        write_report(tmp_path / where)
        charts = charts_of((tmp_path / where / "report.html").read_text())
        assert ("Trials, in the order in which they began" in charts) == expected
        assert not [
            title for title in charts if "Contour" in title or title in ("Importance", "Parallel coordinates")
        ]


def test_what_is_missing_failed_or_not_run_is_never_filled(tmp_path):
    axes = {"dataset": {"grid": {"digits": {}, "other": {"data.name": "folder", "data.path": "{root}/x"}}}}
    plan = make_plan(SweepRequest(space_from({**SMALL, "axes": axes, "paper": [80, 70]}), "full"))
    bad = {
        0: Outcome("finished", "", {"eval/knn_top1": 50.0}, 1.0),
        1: Outcome("failed", "out of memory: x"),
        2: None,
    }
    fill(tmp_path / "s", plan, lambda trial: bad[trial.seed])
    text = write_report(tmp_path / "s")
    assert "| digits | 50.00 (1), 1 failed, 1 to run | 80 |" in text
    assert "out of memory: x" in text
    assert "1 cells are not run: its data is looked for under data_root=, which is not given" in text
    assert "| other" not in text


def test_a_directory_of_another_sweep_or_of_none_is_refused(directory, tmp_path):
    other = make_plan(SweepRequest(space_from({**SMALL, "fixed": {"train.epochs": 3}}), "full"))
    with pytest.raises(InputError, match="space small has since changed its fixed"):
        claim(directory, other)
    named = make_plan(SweepRequest(space_from({**SMALL, "name": "else"}), "full"))
    with pytest.raises(InputError, match="holds another sweep: space=small, not else"):
        claim(directory, named)
    claim(directory, make_plan(SweepRequest(space_from(SMALL), "full", seeds=(0,))))  # fewer seeds are fine
    (tmp_path / "x").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        claim(tmp_path, named)
    with pytest.raises(InputError, match="is not a sweep directory"):
        report_command.main([f"sweep={tmp_path}"])


def test_what_has_been_damaged_is_named_or_run_anew(directory, tmp_path, capsys):
    shutil.copytree(directory, tmp_path / "s")
    trials = sorted((tmp_path / "s" / "trials").iterdir())
    for path, content in zip(trials, ("{half", "", "[1]"), strict=False):
        (path / "trial.json").write_text(content)
    best = read_sweep(tmp_path / "s").best()[0]
    (tmp_path / "s" / "trials" / best / "recipe.yaml").unlink(missing_ok=True)
    (tmp_path / "s" / "best.yaml").unlink(missing_ok=True)
    report_command.main([f"sweep={tmp_path / 's'}"])
    assert "3 to run" in capsys.readouterr().out
    assert not (tmp_path / "s" / "best.yaml").exists()
    (trials[0] / "cell.json").write_text("{half")
    with pytest.raises(InputError, match=r"cell\.json is damaged; remove .* and run the sweep again"):
        report_command.main([f"sweep={tmp_path / 's'}"])
    for content in ("{}", "[1]", "null", "{half"):
        (tmp_path / "s" / "sweep.json").write_text(content)
        with pytest.raises(InputError, match=r"sweep\.json"):
            report_command.main([f"sweep={tmp_path / 's'}"])


def test_a_sweep_of_which_nothing_has_begun_has_a_report(tmp_path, capsys):
    claim(tmp_path / "s", make_plan(SweepRequest(space=space_from(SMALL), scale="full")))
    report_command.main([f"sweep={tmp_path / 's'}"])
    assert "0 trials (none has begun)" in capsys.readouterr().out


def test_reproduced_means_within_the_band_at_full_scale_and_in_order_at_the_small_one(directory):
    result = read_sweep(directory)
    keys = {("0.1", "0.03"), ("0.1", "0.08")}
    wide = result.space.model_copy(update={"band": result.space.band.model_copy(update={"points": 4.0})})
    came_out, said = verdict(result, keys)
    assert came_out == "otherwise"
    assert "the paper 90: outside ±1" in said[0]
    assert verdict(replace(result, space=wide), keys)[0] == "as in the paper"
    assert verdict(replace(result, space=wide), {("0.2", "0.08")})[0] == "otherwise"  # collapsed
    assert verdict(replace(result, scale="cpu"), keys)[0] == "as in the paper"


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ("0.03", "0.08", "as in the paper"),
        ("0.08", "0.03", "otherwise"),
        (["0.03", "0.08"], "0.03", "otherwise"),
    ],
)
def test_at_the_small_scale_the_claims_of_the_paper_are_what_is_judged(directory, better, worse, expected):
    result = read_sweep(directory)
    axis = "method.tau_teacher"
    claim = Claim(says="so it is", better={axis: better}, worse={axis: worse})
    stated = replace(result, scale="cpu", space=result.space.model_copy(update={"claims": (claim,)}))
    came_out, said = verdict(stated, set())
    assert came_out == expected, said
    assert any("so it is" in sentence for sentence in said)


def test_a_grid_goes_on_with_what_has_not_ended_and_what_had_begun_first(tmp_path):
    plan = make_plan(SweepRequest(space_from(SMALL), "full"))
    fill(tmp_path / "s", plan, lambda t: None if t.seed == 1 else outcome_of(t))
    begun = sweep_directory.remaining(tmp_path / "s", plan)
    assert {t.seed for t in begun} == {1}
    failed = begun[0]
    write_outcome(sweep_directory.trial_directory(tmp_path / "s", failed), Outcome("failed", "killed"))
    assert failed in sweep_directory.remaining(tmp_path / "s", plan)
    grid = Grid(begun)
    assert [grid.next() for _ in range(5)] == [
        *begun[:0],
        *sweep_directory.remaining(tmp_path / "s", plan),
        None,
    ]


# -------------------------------------------------------------------- open searches

OPEN = {
    **SMALL,
    "search": "optuna",
    "trials": 12,
    "paper": {},
    "axes": {
        "method.tau_student": {"loguniform": [0.05, 0.5]},
        "method.predictor": {"choice": [True, False]},
        "method.hidden": {"integer": [16, 64], "when": {"method.predictor": ["true"]}},
    },
}


def search(plan, directory):
    known = sweep_directory.known(directory)
    return OpenSearch(plan, known, lambda t, values: sweep_directory.remember(directory, t, values))


def played(plan, directory, rounds):
    """Run `rounds` trials whose result is best at τ = 0.1."""
    asked = search(plan, directory)
    found = []
    for _ in range(rounds):
        if (trial := asked.next()) is None:
            break
        value = 90 - abs(math.log(trial.recipe.method.tau_student / 0.1))
        outcome = Outcome("finished", "", {"eval/knn_top1": value}, 1.0, 0.0, 5)
        where = sweep_directory.trial_directory(directory, trial)
        (where / "recipe.yaml").write_text(dump(trial.recipe))
        write_outcome(where, outcome)
        asked.tell(trial, outcome)
        found.append(trial.id)
    return found


def test_an_open_search_goes_on_to_the_requested_count_and_repeats_nothing(tmp_path):
    plan = make_plan(SweepRequest(space_from(OPEN), "full"))
    claim(tmp_path, plan)
    first = played(plan, tmp_path, 5)
    interrupted = search(plan, tmp_path).next()  # began, and never ended
    assert interrupted.id not in first
    later = played(plan, tmp_path, 99)
    assert later[0] == interrupted.id
    assert len(set(first + later)) == len(first + later) == 12
    assert played(plan, tmp_path, 1) == []
    text = write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    for part in ("Parallel coordinates", "Trials, in the order in which they began"):
        assert len(charts_of(page)[part]["data"]) > 1
    best = read_sweep(tmp_path).best()
    assert best[1].mean == max(
        json.loads(p.read_text())["metrics"]["eval/knn_top1"] for p in tmp_path.glob("trials/*/trial.json")
    )
    assert "Best here: tau_student=" in text


def test_a_search_with_two_objectives_takes_both(tmp_path):
    given_space = space_from({**OPEN, "objectives": {"eval/knn_top1": "max", "seconds": "min"}, "trials": 6})
    plan = make_plan(SweepRequest(given_space, "full"))
    claim(tmp_path, plan)
    assert len(played(plan, tmp_path, 99)) == 6
    write_report(tmp_path)
    charts = charts_of((tmp_path / "report.html").read_text())
    assert "Both objectives: what no trial beats in both" in charts


def test_lost_trials_do_not_end_an_open_search(tmp_path):
    plan = make_plan(SweepRequest(space_from({**OPEN, "trials": 4}), "full"))
    claim(tmp_path, plan)
    asked, states = search(plan, tmp_path), ["collapsed", "diverged", "failed", "pruned"]
    for state in states:
        trial = asked.next()
        outcome = Outcome(state, "", {"eval/knn_top1": 1.0} if state == "pruned" else {}, epochs=2)
        write_outcome(sweep_directory.trial_directory(tmp_path, trial), outcome)
        asked.tell(trial, outcome)
    assert asked.next() is None
    again = search(plan, tmp_path)
    assert again.next() is not None  # the failed one, once more
    assert again.next() is None


def test_hours_are_readable():
    assert [tables.hours(s) for s in (3.4, 600, 9000)] == ["3 s", "10 min", "2.5 h"]


def test_times_per_epoch_are_shares_of_one_cells_beside_the_papers(tmp_path):
    seconds = {0.1: 4.0, 0.2: 6.0}
    timed = {
        **SMALL, "axes": {"method.tau_student": [0.1, 0.2, 0.3]}, "paper": [80, 70, 60],
        "epoch_seconds": {"to": "0.1", "paper": [659, 1056, 776]},
    }  # fmt: skip
    plan = make_plan(SweepRequest(space_from(timed), "full"))

    def outcome(trial):
        took = seconds.get(trial.recipe.method.tau_student)
        took = None if took is None else took + 0.1 * (trial.seed - 1)
        return Outcome("finished", "", {"eval/knn_top1": 90.0}, 60.0, epoch_s=took)

    fill(tmp_path, plan, outcome)
    text = tables.markdown(read_sweep(tmp_path))
    assert "| time per epoch / 0.1 | paper's |" in text
    assert "| 0.1 | 90.00 ± 0.00 (3) | 80 | 1.00 (4 s) | 1.00 (659 s) |" in text
    assert "| 0.2 | 90.00 ± 0.00 (3) | 70 | 1.50 (6 s) | 1.60 (1056 s) |" in text
    assert "| 0.3 | 90.00 ± 0.00 (3) | 60 |  | 1.18 (776 s) |" in text
    lines = list(csv.DictReader(tables.to_csv(read_sweep(tmp_path)).splitlines()))
    assert [line["epoch_s"] for line in lines] == ["4", "6", ""]


def test_a_table_says_which_rule_made_which_cell(tmp_path):
    plan = make_plan(
        SweepRequest(space_from({**SMALL, "axes": {"method.tau_student": [0.1, 0.2]}, "paper": {}}), "full")
    )

    def outcome(trial):
        rule = "as printed" if trial.recipe.method.tau_student == 0.1 else ""
        return Outcome("finished", "", {"eval/knn_top1": 90.0}, 60.0, rule=rule)

    fill(tmp_path, plan, outcome)
    assert "Rule of 0.1: as printed." in tables.markdown(read_sweep(tmp_path))


def claim(directory, plan):
    with sweep_directory.claim(directory, plan):
        pass


def test_a_measures_cells_show_their_own_metrics_of_the_same_runs(tmp_path):
    given = {
        **SMALL,
        "axes": {"method.tau_student": [0.1, 0.2]},
        "measures": {"k": {"200": "eval/knn_top1", "20": "eval/knn20_top1"}},
        "paper": {0.1: [50, 61], 0.2: [52, 63]},
        "group": "k",
        "seeds": [0],
    }
    plan = make_plan(SweepRequest(space=space_from(given), scale="full"))
    fill(
        tmp_path / "sweep", plan,
        lambda trial: Outcome("finished", "", {
            "eval/knn_top1": 50 + 10 * trial.recipe.method.tau_student, "eval/knn20_top1": 60.0
        }),
    )  # fmt: skip
    found = read_sweep(tmp_path / "sweep")
    assert {e.labels: e.mean for e in found.entries} == {
        ("0.1", "200"): 51, ("0.1", "20"): 60, ("0.2", "200"): 52, ("0.2", "20"): 60,
    }  # fmt: skip
    assert [a.cells for a in found.agreements()] == [2, 2]
    assert found.best()[1].labels == ("0.2", "200")  # of the headline alone
    write_report(tmp_path / "sweep")
    text = (tmp_path / "sweep" / "table.md").read_text()
    assert "| 0.2 | 52.00 (1) / 52 | 60.00 (1) / 63 |" in text
    assert "Each cell: ours, k=200 eval/knn_top1, k=20 eval/knn20_top1, mean" in text
