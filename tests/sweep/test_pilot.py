"""A pilot: which cells it runs, and what they say of a small version."""

import pytest
from scipy import stats
from small_space import SMALL

pytest.importorskip("optuna")

from raysurl.commands import sweep as command
from raysurl.errors import InputError, RunError
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep import tables
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.pilot import SIGNAL, Pilot, extremes, measured, summary
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.results import read_sweep
from raysurl.sweep.space import space_from
from raysurl.sweep.trial import Outcome, write_outcome

HIGH, LOW = ("0.1", "0.03"), ("0.2", "0.08")


def found_in(where, value_of, **changes):
    """The pilot of a space whose trials came out as `value_of(high, seed)`: points, or None for a collapse."""
    plan = make_plan(SweepRequest(space_from(SMALL | changes), "full", pilot=True))
    with sweep_directory.claim(where, plan):
        for trial in plan.trials:
            sweep_directory.remember(where, trial)
            points = value_of(trial.cell.key == HIGH, trial.seed)
            ending = ("collapsed", "", {}) if points is None else ("finished", "", {"eval/knn_top1": points})
            write_outcome(sweep_directory.trial_directory(where, trial), Outcome(*ending, 90.0))
    return measured(read_sweep(where), extremes(plan.space, paper_numbers(plan.request.space), plan.ids))


def test_its_trials_are_those_of_the_papers_extreme_cells_and_are_the_sweeps_own():
    space = space_from(SMALL)
    pilot, whole = (make_plan(SweepRequest(space, "full", pilot=pilot)) for pilot in (True, False))
    assert set(pilot.ids) == {HIGH, LOW}
    assert {t.id for t in pilot.trials} == {i for key in (HIGH, LOW) for i in whole.ids[key]}


def test_cells_are_of_one_group_the_widest_and_of_those_that_are_run():
    axes = {"dataset": {"grid": {"near": {}, "far": {}}}, "method.tau_student": [0.1, 0.2, 0.3]}
    paper = {"near": [80.0, 81.0, 82.0], "far": [20.0, 60.0, 50.0]}
    space = space_from(SMALL | {"axes": axes, "paper": paper})
    every = [(d, s) for d in ("near", "far") for s in ("0.1", "0.2", "0.3")]
    assert extremes(space, paper_numbers(space), every) == [("far", "0.2"), ("far", "0.1")]
    assert extremes(space, paper_numbers(space), every[:3]) == [("near", "0.3"), ("near", "0.1")]
    lower = space.model_copy(update={"objectives": {"eval/knn_top1": "min"}})
    assert extremes(lower, paper_numbers(space), every[:3]) == [("near", "0.1"), ("near", "0.3")]
    with pytest.raises(InputError, match="no two cells here with different numbers"):
        extremes(space, paper_numbers(space), every[:1])


def test_the_smallest_effect_is_where_a_t_test_begins_to_tell(tmp_path):
    noise = (-0.5, 0.1, 0.4)
    found = found_in(tmp_path / "sweep", lambda high, seed: (70.0 if high else 60.0) + noise[seed])
    assert (found.spread, found.seeds, found.minutes) == (pytest.approx(10.0), 3, 1.5)
    assert found.noise == pytest.approx(stats.tstd(noise))
    at_the_edge = [v + found.smallest for v in noise]
    assert stats.ttest_ind(noise, at_the_edge).pvalue == pytest.approx(0.05)
    assert found.shows
    assert "of 0.1, 0.03 and 0.2, 0.08, the paper's highest and lowest, the first is 10.00" in found.sentence


@pytest.mark.parametrize(("spread", "shows"), [(SIGNAL * 1.01, True), (SIGNAL * 0.99, False), (-9.0, True)])
def test_the_rule_is_three_times_the_noise_in_either_direction(spread, shows, tmp_path):
    found = found_in(tmp_path / "sweep", lambda high, seed: 50 + spread * high + (seed - 1))
    assert found.noise == pytest.approx(1.0)
    assert found.shows is shows
    assert ("too near" in found.sentence) is not shows


def test_a_side_that_collapses_is_seen_and_too_few_seeds_are_not(tmp_path):
    found = found_in(tmp_path / "a", lambda high, seed: 50.0 + seed if high else None)
    assert (found.spread, found.collapsed) == (None, "lowest")
    assert found.shows
    assert "the lowest of both collapsed" in found.sentence
    with pytest.raises(RunError, match="two seeds that finished"):
        found_in(tmp_path / "b", lambda high, seed: 50.0 + high, seeds=[0])


def test_what_was_found_stands_in_the_space_and_in_the_table(tmp_path):
    kept = Pilot(highest="a", lowest="b", spread=1.0, noise=0.5, seeds=2, minutes=2.5, commit="abc")
    changes = {"cpu": {"fixed": {"train.epochs": 2}, "pilot": kept.model_dump()}}
    plan = make_plan(SweepRequest(space_from(SMALL | changes), "cpu"))
    with sweep_directory.claim(tmp_path / "sweep", plan):
        assert kept.sentence in tables.facts(read_sweep(tmp_path / "sweep"))


def test_a_table_has_the_pilots_of_all_its_small_versions_and_its_own_first(tmp_path):
    kept = {"highest": "a", "lowest": "b", "noise": 0.5, "seeds": 2, "minutes": 2.5, "commit": "abc"}
    digits, photographs = (Pilot(spread=spread, **kept) for spread in (1.0, 2.0))
    small = {"fixed": {"train.epochs": 2}}
    space = space_from(
        SMALL
        | {"cpu": small | {"pilot": digits.model_dump(), "stands_in": "digits"}}
        | {"photographs": small | {"pilot": photographs.model_dump(), "stands_in": "photographs"}}
    )
    plan = make_plan(SweepRequest(space, "photographs"))
    with sweep_directory.claim(tmp_path / "sweep", plan):
        sweep = read_sweep(tmp_path / "sweep")
    assert sweep.stands_in == "photographs"
    found = [fact for fact in tables.facts(sweep) if "Pilot of" in fact]
    assert found == [photographs.sentence, f"At scale=cpu (digits): {digits.sentence}"]
    assert summary([space]).endswith("At any of these scales 1 of 1 tables can be seen.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["space=open_ressl", "pilot=true"], "has none"),
        (["space=ressl_table3", "scale=full", "pilot=true"], "scale=full is none of space ressl_table3"),
        (["space=ressl_table3", "pilot=perhaps"], "pilot=perhaps must be true or false"),
    ],
)
def test_what_has_no_pilot_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        command.read_arguments(arguments)


def test_one_sentence_says_of_all_pilots_which_show_what_their_table_says():
    def of(title, **found):
        kept = {
            "highest": "a",
            "lowest": "b",
            "noise": 0.5,
            "seeds": 3,
            "minutes": 1.0,
            "commit": "abc",
            **found,
        }
        tree = {
            "name": "x",
            "title": title,
            "recipe": "ressl/digits",
            "axes": {"seed_axis": {"grid": {"a": {}}}},
        }
        return space_from({**tree, "cpu": {"pilot": kept}})

    spaces = [
        of("T1", spread=2.0),
        of("T2", spread=-2.0),
        of("T3", spread=1.0),
        of("T4", spread=None, collapsed="highest"),
    ]
    assert summary(spaces) == (
        "Pilots of the paper's extreme cells at scale=cpu find them 3 times the seeds' noise apart in 3 of 4 small"
        " versions: T1; T2"
        " (the wrong way round); T4 (by a collapse, the wrong way round)."
    )
    assert summary([]) == ""
