"""The benchmark of searches: curves as they are read, what pruning by a signal saves, and how signals rank trials."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "pipelines"))
from benchmarks._curves import SIGNALS, Curve, read_curve
from benchmarks._replays import RULES, Rule, asha, replay, replayed, value_at
from benchmarks._searched_page import page
from benchmarks._signals import agreements, importances
from benchmarks.pruning import pruned_by
from benchmarks.searches import FILE, METHODS, Images, papers_values, search_space

from raysurl.errors import InputError
from raysurl.sweep.space import Prune, read_space
from raysurl.sweep.trial import Outcome

EPOCHS = 8
ASHA = Rule(asha(1, 2.0))


def curve(final: float, *, told: float | None = None, epochs: int = EPOCHS, state: str = "finished") -> Curve:
    """A trial whose signals are `told` throughout, by default its accuracy."""
    values = [final if told is None else told] * epochs
    return Curve({"lr": final}, state, final, epochs, 1.0, dict.fromkeys(SIGNALS, values))


def test_a_signal_that_knows_the_end_saves_epochs_and_loses_nothing() -> None:
    curves = [curve(float(final)) for final in range(10, 26)]
    for order in ([*range(16)], [*reversed(range(16))]):
        epochs, best = replay(order, curves, "RankMe", ASHA, 0)
        assert best == 25
        assert epochs <= 16 * EPOCHS
    # the best come first: all that is worse ends at its first look
    assert replay([*reversed(range(16))], curves, "RankMe", ASHA, 0)[0] < 0.4 * 16 * EPOCHS


def test_a_signal_that_is_the_wrong_way_round_loses_the_best() -> None:
    curves = [curve(float(final), told=-float(final)) for final in range(10, 26)]
    assert replay([*range(16)], curves, "RankMe", ASHA, 0)[1] < 25


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.shown)
def test_every_rule_trains_each_epoch_at_most_once(rule: Rule) -> None:
    rng = np.random.default_rng(0)
    curves = [curve(float(final), told=float(rng.normal())) for final in rng.uniform(10, 40, 12)]
    epochs, best = replay([*range(12)], curves, "LiDAR", rule, 0)
    assert 12 <= epochs <= 12 * EPOCHS
    assert best in [0.0, *(c.final for c in curves)]


def test_a_trial_that_collapsed_costs_its_epochs_and_is_never_the_best() -> None:
    curves = [curve(30.0), curve(40.0, epochs=3, state="collapsed"), curve(20.0)]
    epochs, best = replay([0, 1, 2], curves, "RankMe", Rule(Prune(kind="median", grace_epochs=8)), 0)
    assert (epochs, best) == (EPOCHS + 3 + EPOCHS, 30.0)
    told = {(each["signal"], each["rule"]): each for each in replayed(curves, orders=2)}
    assert len(told) == len(SIGNALS) * len(RULES)


def test_an_extrapolated_signal_follows_its_line_over_the_logarithm_of_epochs() -> None:
    rising = [1 + 2 * math.log(epoch) for epoch in range(1, EPOCHS + 1)]
    one = Curve({}, "finished", 0.0, EPOCHS, 1.0, {"LiDAR": rising})
    rule = Rule(asha(2, 3.0), extrapolated=True)
    assert value_at(one, "LiDAR", 3, rule, EPOCHS) == pytest.approx(rising[-1])
    assert value_at(one, "LiDAR", 1, rule, EPOCHS) == rising[0]
    assert value_at(one, "LiDAR", 3, ASHA, EPOCHS) == rising[2]


def test_agreement_is_of_the_rank_after_a_share_of_the_epochs() -> None:
    finals = [12.0, 20.0, 31.0, 35.0, 40.0]
    late = [Curve({}, "finished", f, EPOCHS, 1.0, {n: [-f] * 3 + [f] * 5 for n in SIGNALS}) for f in finals]
    found = agreements(late)["LiDAR"]
    assert found["0.25"][0] == -1
    assert found["1.0"][0] == 1
    assert found["1.0"][1] <= found["1.0"][0] <= found["1.0"][2]


def test_curves_are_read_from_what_a_trial_wrote(tmp_path: Path) -> None:
    online = {"eval/knn_top1": 30.0, "health/rankme": 9.0, "health/alpha_req": 1.5, "health/lidar": 4.0}
    lines = [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 1.0}, {"step": 2, **online}]
    lines += [{"step": 3, "train/loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = {"eval/knn_top1": 33.0, "health/rankme": 11.0, "health/alpha_req": 0.75, "health/lidar": 5.0}
    found = read_curve(
        tmp_path, {"lr": 0.1}, Outcome("finished", metrics=last, seconds=5, epochs=2), "eval/knn_top1"
    )
    assert (found.final, found.epochs) == (33.0, 2)
    assert found.at["RankMe"] == [9.0, 11.0]
    assert found.at["loss"] == [-2.0, -0.5]
    assert found.at["α-ReQ, nearness to 1"] == [-0.5, -0.25]
    assert all(map(math.isnan, found.at["uniformity"]))
    assert Curve(**found.kept()).at["kNN (with labels)"] == [30.0, 33.0]


@pytest.mark.parametrize("method", METHODS)
def test_each_search_has_the_papers_setting_among_its_values(method: str, tmp_path: Path) -> None:
    space = search_space(method, Images(*(tmp_path / f"{i}.parquet" for i in range(3))))
    values = papers_values(method, space)
    assert set(values) == set(space.axes)
    assert not set(space.fixed) & set(space.axes)


@pytest.mark.slow
def test_importance_finds_the_axis_that_decides(tmp_path: Path) -> None:
    space = search_space("ressl", Images(*(tmp_path / f"{i}.parquet" for i in range(3))))
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(24):
        values = {
            name: float(np.exp(rng.uniform(*np.log(axis.range))))
            for name, axis in space.axes.items()
            if axis.range
        }
        values |= {"method.momentum": "0.99", "train.batch_size": str(rng.choice(["64", "128", "256"]))}
        final = 30 + 5 * math.log(values["train.optimizer.lr"])
        curves.append(Curve(values, "finished", final, EPOCHS, 1.0, {}))
    found = importances(space, curves, resampled=3)
    assert max(found, key=lambda axis: found[axis][0]) == "train.optimizer.lr"
    assert found["method.momentum"][0] == 0.0


def kept_row(best: list[float], paper: list[float]) -> dict:
    """A search of sixteen trials whose RankMe tells the end and whose other signals tell nothing."""
    finals = [20.0 + (7 * i) % 16 for i in range(16)]
    curves = []
    for i, final in enumerate(finals):
        at = {name: [float(i % 2)] * EPOCHS for name in SIGNALS} | {"RankMe": [final] * EPOCHS}
        curves.append(Curve({"lr": i}, "finished", final, EPOCHS, 30.0, at))
    top = max(curves, key=lambda c: c.final)
    return {
        "trials": [c.kept() for c in curves], "paper": curves[0].values, "best": top.values, "epochs": EPOCHS,
        "again": {"best": best, "paper": paper}, "importance": {"lr": [0.9, 0.5, 1.0]},
        "agreement": agreements(curves), "replays": replayed(curves, orders=2), "commit": "abc", "hardware": "here",
    }  # fmt: skip


@pytest.mark.slow
def test_the_page_says_what_the_rows_say() -> None:
    rows = {
        "ressl": kept_row([33.0, 33.2, 32.9], [30.0, 30.1, 30.3]),
        "rcl": kept_row([31.0, 29.0], [30.0, 30.5]),
    }
    found = page(rows)
    summary = next(line for line in found.splitlines() if line.startswith("> "))
    assert "surely above the paper's in 1 of 2 methods (ressl)" in summary
    assert "RankMe ranks trials best of the signals without labels (Spearman 1.00" in summary
    assert "Pruning by RankMe" in summary
    assert "| rcl | best: lr 7 | 35.0 | 30.0 | -0.2" in found.replace("lr 9", "lr 7")
    assert "| RankMe | 25% | 1.00 | 1.00 (1.00 to 1.00) |" in found


def test_the_kept_page_is_as_its_generator_writes_it() -> None:
    kept = FILE.with_suffix(".md")
    assert kept.read_text() == page(json.loads(FILE.read_text()))


def test_a_benchmark_changes_what_a_space_prunes_by_at_both_scales() -> None:
    space = read_space("open_ressl_pruned")
    assert pruned_by(space, {}).model_dump() == space.model_dump()
    without, by_knn = pruned_by(space, None), pruned_by(space, {"signal": "eval/knn_top1", "reduction": 4})
    assert without.cpu
    assert by_knn.cpu
    assert (without.prune, without.cpu.prune) == (None, None)
    asked = Prune(kind="asha", signal="eval/knn_top1", grace_epochs=2, reduction=4)
    assert by_knn.cpu.prune.model_dump() == asked.model_dump()
    with pytest.raises(InputError, match=r"prune: .*sgnal"):
        pruned_by(space, {"sgnal": "eval/knn_top1"})
