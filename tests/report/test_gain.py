"""Why there was no gain: a cause is named where the run's own numbers bear it out, and only there."""

import numpy as np
import pytest

from raysurl.metrics import Tally
from raysurl.recipe import recipe_from
from raysurl.train import gain

SAID = "no gain: the encoder is not above its untrained self"
FINE = {
    "first": 5.0, "last": 4.0, "steps": 20_000, "warm": 10, "epochs": 200,
    "metrics": {"eval/knn_top1": 50.0, "eval/untrained_knn_top1": 50.0}, "labels": np.arange(5000) % 10,
}  # fmt: skip


def found(collapsed=False, **changes):
    given = FINE | changes
    schedule = {"warmup_epochs": given["warm"]}
    recipe = recipe_from({"train": {"epochs": given["epochs"], "schedule": schedule}})
    tally = Tally(losses=[given["last"]], first=given["first"])
    facts = gain.RunFacts(recipe, given["metrics"], tally, given["steps"], given["labels"])
    return gain.sentence(facts, collapsed=collapsed)


def test_without_a_cause_that_numbers_show_that_is_said():
    assert found().startswith("causes of no gain: none of those that numbers show applies")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"collapsed": True}, "has collapsed"),
        ({"warm": 10, "epochs": 12}, "warmed up for 10 of 12 epochs"),
        ({"steps": 40}, "only 40 steps were trained"),
        ({"first": 4.0, "last": 4.0}, "the training loss has not fallen (4.000"),
        ({"first": -4.0, "last": -4.0}, "the training loss has not fallen"),
        ({"first": 1.0, "last": 9.0}, "the training loss has not fallen"),
        ({"metrics": {"eval/knn_top1": 99.0, "eval/pixels_knn_top1": 98.5}}, "a baseline is at 98.5 %"),
        ({"labels": np.repeat([0, 1], [4900, 100])}, "than the smallest class has images (100)"),
        ({"metrics": {"eval/knn_top1": 11.0, "eval/untrained_knn_top1": 10.0}}, "at chance (10.0 %"),
    ],
)
def test_a_cause_is_named_alone_where_it_alone_applies(changes, said):
    sentence = found(**changes)
    assert sentence.startswith("likely causes of no gain: ")
    assert said in sentence
    others = sentence.replace("at chance", "").count(";")
    assert others <= 2


def test_a_loss_below_zero_that_falls_has_fallen():
    assert "has not fallen" not in found(first=-4.0, last=-5.0)


def test_a_run_that_did_not_get_so_far_has_no_causes_made_up():
    assert "none of those" in found(first=None, metrics={}, labels=None)


def test_causes_stand_after_the_finding_and_nowhere_else():
    facts = gain.RunFacts(recipe_from({}), {}, Tally(), 3, None)
    assert gain.explained(["collapse: x"], facts) == ["collapse: x"]
    first, second, third = gain.explained([SAID, "other"], facts)
    assert (first, third) == (SAID, "other")
    assert second.startswith("likely causes of no gain: only 3 steps")
