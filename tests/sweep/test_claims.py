"""What papers conclude from their tables: stated truly of their own numbers, and judged with intervals here."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from raysurl.errors import InputError
from raysurl.sweep.agreement import Pair, agree
from raysurl.sweep.axis import labels_of
from raysurl.sweep.claims import Claim, judge, listed
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.space import SPACES, read_space, space_from


@dataclass(frozen=True)
class Cell:
    labels: tuple[str, ...]
    values: tuple[float, ...] = ()
    paper: float | None = None
    lost: bool = False

    @property
    def ranked(self):
        if self.lost:
            return -math.inf
        return float(np.mean(self.values)) if self.values else None


AXES = ["data", "loss"]
CLAIM = Claim(says="b helps", better={"loss": "b"}, worse={"loss": "a"})
LOW, HIGH = (60.0, 61.0, 62.5), (70.0, 71.5, 70.5)


def cells(**others):
    return [Cell(("x", "a"), LOW, 50.0), Cell(("x", "b"), HIGH, 53.0), Cell(("x", "c"), (99.0, 98.0), 99.0)]


STATED = [path.stem for path in sorted(SPACES.glob("*.yaml")) if "claims:" in path.read_text()]
IN_WORDS = [name for name in STATED if not read_space(name).paper]


@pytest.mark.parametrize("name", [name for name in STATED if name not in IN_WORDS])
def test_what_a_space_claims_is_true_of_the_papers_own_numbers(name):
    space = read_space(name)
    numbers = [Cell(labels, (value, value), value) for labels, value in paper_numbers(space).items()]
    for claim in space.claims:
        found = judge(
            claim, list(space.axes), numbers, higher_is_better=space.objectives[space.metric] == "max"
        )
        assert found.verdict == "supported", found.sentence
        assert found.paper > 0


@pytest.mark.parametrize("name", IN_WORDS)
def test_a_claim_of_a_figure_without_numbers_sets_a_value_against_all_others_or_the_ends(name):
    space = read_space(name)
    assert space.says
    ((axis, values),) = space.axes.items()
    labels = labels_of(values)
    (claim,) = space.claims
    better, worse = set(listed(claim.better[axis])), set(listed(claim.worse[axis]))
    assert not better & worse
    assert better | worse == set(labels) or better == set(labels[-2:])
    # the value is the one that the paper names, which writes 2048 as 2,048
    assert len(better) > 1 or better & set(space.says.replace(",", "").split())


def test_most_tables_state_a_claim():
    printed = [path.stem for path in SPACES.glob("*.yaml") if read_space(path.stem).paper]
    assert len(set(STATED) - set(IN_WORDS)) > 0.8 * len(printed)


def test_two_cells_are_compared_as_by_a_t_test_of_equal_variances():
    found = judge(CLAIM, AXES, cells())
    expected = stats.ttest_ind(HIGH, LOW).confidence_interval()
    assert found.difference == pytest.approx(np.mean(HIGH) - np.mean(LOW))
    assert (found.difference - found.half, found.difference + found.half) == pytest.approx(
        (expected.low, expected.high)
    )
    assert (found.verdict, found.paper, found.comparisons) == ("supported", 3.0, 1)
    assert found.sentence.startswith("supported: b helps: +9.50 ± ")


def test_the_other_way_round_it_is_contradicted_and_lower_may_be_better():
    turned = Claim(says="a helps", better=CLAIM.worse, worse=CLAIM.better)
    assert judge(turned, AXES, cells()).verdict == "contradicted"
    found = judge(turned, AXES, cells(), higher_is_better=False)
    assert (found.verdict, found.paper) == ("supported", 3.0)


def test_a_difference_within_the_noise_is_not_seen_and_says_what_could_be():
    near = [Cell(("x", "a"), (60.0, 64.0), 50.0), Cell(("x", "b"), (61.0, 65.5), 53.0)]
    found = judge(CLAIM, AXES, near)
    assert found.verdict == "not seen"
    assert f"an effect of {found.half:.2f} could be (the paper: +3.00)" in found.sentence
    one = [replace(cell, values=cell.values[:1]) for cell in near]
    assert "of one seed, so that the noise is not known" in judge(CLAIM, AXES, one).sentence


def test_cells_are_compared_where_their_other_axes_agree():
    both = [
        *cells(),
        Cell(("y", "a"), (10.0, 10.2)),
        Cell(("y", "b"), (9.0, 9.2)),
        Cell(("z", "b"), (0.0, 0.0)),
    ]
    found = judge(CLAIM, AXES, both)
    assert found.comparisons == 2
    assert found.difference == pytest.approx((np.mean(HIGH) - np.mean(LOW) - 1.0) / 2)
    # the mean of sides of several cells
    sides = Claim(says="", better={"loss": ["b", "c"]}, worse={"loss": "a"})
    assert judge(sides, AXES, cells()).difference == pytest.approx((np.mean(HIGH) + 98.5) / 2 - np.mean(LOW))


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    draws, inside = np.random.default_rng(0), 0
    for _ in range(400):
        made = [
            Cell((data, loss), tuple(draws.normal(mean, 1, 3)))
            for data in "xyz"
            for loss, mean in (("a", 0.0), ("b", 0.5))
        ]
        found = judge(CLAIM, AXES, made)
        inside += abs(found.difference - 0.5) <= found.half
    assert 0.92 < inside / 400 < 0.98


def test_a_side_that_collapsed_is_below_one_that_did_not():
    lost = Cell(("x", "a"), (), 10.0, lost=True)
    found = judge(CLAIM, AXES, [lost, cells()[1]])
    assert (found.verdict, found.collapsed, found.paper) == ("supported", True, 43.0)
    assert "the other side collapsed" in found.sentence
    turned = judge(CLAIM, AXES, [cells()[0], replace(lost, labels=("x", "b"))])
    assert turned.verdict == "contradicted"
    assert "this side collapsed" in turned.sentence
    none = judge(CLAIM, AXES, [lost, replace(lost, labels=("x", "b"))])
    assert none.verdict == "not seen"
    assert "both sides collapsed" in none.sentence
    assert "no cells of both sides were run" in judge(CLAIM, AXES, [lost]).sentence


@pytest.mark.parametrize(
    ("better", "worse", "said"),
    [
        ({"tau": "0.1"}, {"tau": "0.3"}, r"names tau=0.3; it has 0.1, 0.2"),
        ({"loss": "0.1"}, {"loss": "0.2"}, "names loss, which is no axis; they are tau"),
        ({"tau": "0.1"}, {}, "must name the same axes for better and for worse"),
    ],
)
def test_a_claim_of_what_is_not_in_the_table_is_refused(better, worse, said):
    axes = {"tau": {"key": "method.tau_student", "grid": [0.1, 0.2]}}
    claims = [{"says": "so", "better": better, "worse": worse}]
    with pytest.raises(InputError, match=said):
        space_from({"name": "s", "title": "t", "recipe": "ressl/digits", "axes": axes, "claims": claims})


def test_the_interval_of_a_rank_correlation_is_over_seeds():
    clear = [Pair(str(i), 10.0 * i, 0.1, float(i), (10.0 * i - 0.1, 10.0 * i + 0.1)) for i in range(6)]
    assert agree("", clear).interval == (1.0, 1.0)
    draws = np.random.default_rng(1).normal(0, 10, (6, 3))
    noisy = [Pair(str(i), float(np.mean(v + i)), 5.0, float(i), (*(v + i),)) for i, v in enumerate(draws)]
    found = agree("", noisy)
    assert found.interval[0] < found.spearman < found.interval[1]
    assert f"{found.interval[0]:.2f} to {found.interval[1]:.2f} at 95 %" in found.sentence(0.5)
    assert agree("", [replace(clear[0], values=(1.0,)), *clear[1:]]).interval is None


def test_pairs_are_clear_where_they_differ_by_more_than_the_noise_here_and_in_the_paper():
    far = [Pair("a", 50.0, 0.5, 90.0), Pair("b", 40.0, 0.5, 89.9), Pair("c", 30.0, 0.5, 80.0)]
    assert agree("", far).clear == 2
