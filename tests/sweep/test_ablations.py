"""The page of the papers' tables: kept tables are the sweeps that they were, GPU hours follow from measured steps."""

import contextlib
import csv
import io
import json
import statistics
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from raysurl import cli
from raysurl.commands import reproduce
from raysurl.encoder import encoder_of
from raysurl.errors import InputError, UndecidedError
from raysurl.nets.counting import flops
from raysurl.recipe import dump, load_recipe
from raysurl.sweep import directory as sweep_directory
from raysurl.sweep import running, tables
from raysurl.sweep.ablations import KINDS, as_data, cards, command, counts, is_of_paper, total
from raysurl.sweep.ablations_page import html
from raysurl.sweep.full_size import estimate, read_speeds
from raysurl.sweep.kept import alike, read_csv, read_folder
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.results import read_sweep
from raysurl.sweep.space import SPACES, read_space, space_from
from raysurl.sweep.trial import Outcome, write_outcome

NAME = "superand_table5"
METRIC = {"eval/knn_top1": "max"}
LATER = ("values", "metric", "scale", "of_seeds", "commit", "hardware", "threads")  # columns of newer files


def filled(where, space, outcome_of, **request):
    """A sweep directory whose trials ended so, with what their results say of the machine."""
    plan = make_plan(SweepRequest(space, **{"scale": "full", **request}))
    with sweep_directory.claim(where, plan):
        for trial in plan.trials:
            sweep_directory.remember(where, trial)
            there = sweep_directory.trial_directory(where, trial)
            (there / "recipe.yaml").write_text(dump(trial.recipe))
            (there / "results.json").write_text(
                json.dumps({"hardware": "A <b> machine, 2 cores", "threads": 2})
            )
            write_outcome(there, outcome_of(trial))
    return read_sweep(where)


def ended(trial):
    if trial.cell.labels["method.init"] == "full" and trial.seed == 2:
        return Outcome("collapsed", "of one value", {}, 3.0)
    value = {"random": 90.0, "instance": 80.0, "full": 85.0}[trial.cell.labels["method.init"]]
    return Outcome("finished", "", {"eval/knn_top1": value + trial.seed / 3}, 6.0, epoch_s=0.5)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("sweep") / NAME, read_space(NAME), ended, scale="cpu")


@pytest.fixture(scope="module")
def results(sweep, tmp_path_factory):
    """A folder of one kept table, and of one sweep directory of a space that is of no paper."""
    folder = tmp_path_factory.mktemp("results")
    (folder / f"{NAME}.csv").write_text(tables.to_csv(sweep))
    own = space_from({"name": "mine", "title": "My <b>own</b> axes", "recipe": "ressl/digits", "seeds": [0],
                      "axes": {"method.tau_teacher": [0.03, 0.05]}, "objectives": METRIC})  # fmt: skip
    filled(folder / "mine", own, lambda trial: Outcome("finished", "", {"eval/knn_top1": 50.0}, 1.0))
    return folder


@pytest.fixture(scope="module")
def found(results):
    return cards(results, None)


@pytest.fixture(scope="module")
def page(found):
    return html(found)


# -------------------------------------------------------------------- kept tables


def said(sweep):
    return [v.sentence for v in sweep.verdicts()] + [a.sentence(0.5) for a in sweep.agreements()]


def test_a_kept_table_is_the_sweep_that_it_was(sweep, results):
    kept = read_csv(results / f"{NAME}.csv")
    sentences = said(kept)
    assert sentences == said(sweep)
    assert "supported" in sentences[0]
    assert tables.grid(kept) == tables.grid(sweep)
    assert (kept.scale, kept.stands_in, kept.counts) == (sweep.scale, sweep.stands_in, sweep.counts)
    assert kept.made == sweep.made
    assert tables.facts(kept) == [f for f in tables.facts(sweep) if not f.startswith("Started")]
    facts = " ".join(tables.facts(kept))
    assert (
        "9 trials (1 collapsed, 8 finished), 51 s of training and evaluation in all (102 s of CPU, 2" in facts
    )
    assert "Seeds 0, 1, 2." in facts
    assert "A <b> machine" in facts
    assert tables.to_csv(kept) == tables.to_csv(sweep)


def rewritten(path, change):
    rows = list(csv.DictReader(path.open()))
    text = io.StringIO()
    rows = [change(row) for row in rows]
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_a_table_of_before_has_its_verdicts_and_its_commit(sweep, results, tmp_path):
    old = rewritten(results / f"{NAME}.csv", lambda row: {k: v for k, v in row.items() if k not in LATER})
    path = tmp_path / f"{NAME}.csv"
    path.write_text(old)
    path.with_suffix(".md").write_text(f"# T\n\n{NAME} at scale=cpu: 9 trials\nCode at abc1, def2+.  \n")
    kept = read_csv(path)
    assert [v.sentence for v in kept.verdicts()] == [v.sentence for v in sweep.verdicts()]
    assert (kept.scale, kept.made.commits) == ("cpu", ("abc1", "def2+"))
    # which values the seeds gave is not known, so that nothing can be resampled
    assert [a.interval for a in kept.agreements()] == [None]


def test_a_table_at_two_scales_has_a_file_for_each_and_its_claims_count_once(results, found, tmp_path):
    text = (results / f"{NAME}.csv").read_text()
    (tmp_path / f"{NAME}.csv").write_text(text)
    photographs = rewritten(results / f"{NAME}.csv", lambda row: row | {"scale": "photographs"})
    (tmp_path / f"{NAME}-photographs.csv").write_text(photographs)
    both = cards(tmp_path, None)
    assert [card.sweep.scale for card in both if card.name == NAME and card.ran] == ["photographs", "cpu"]
    assert counts(both) == counts([card for card in found if card.of_paper])
    assert f"{read_space(NAME).title}, photographs</a>" in html(both)
    head, *lines = photographs.splitlines()
    (tmp_path / f"{NAME}.csv").write_text("\n".join([head, *text.splitlines()[1:2], *lines[1:]]))
    with pytest.raises(
        InputError, match="holds cells of scale=cpu and of scale=photographs; keep each in a file"
    ):
        read_csv(tmp_path / f"{NAME}.csv")


def test_a_table_that_its_time_did_not_reach_is_undecided(tmp_path, monkeypatch):
    def half(plan, directory, again, **more):
        with sweep_directory.claim(directory, plan):
            for trial in [t for t in plan.trials if t.seed < 2]:
                sweep_directory.remember(directory, trial)
                there = sweep_directory.trial_directory(directory, trial)
                (there / "recipe.yaml").write_text(dump(trial.recipe))
                write_outcome(there, ended(trial))

    monkeypatch.setattr(running, "run", half)
    with pytest.raises(
        UndecidedError, match="3 of 9 trials have not ended; the same command goes on with them"
    ):
        reproduce.main([NAME, "scale=cpu", f"output={tmp_path / 's'}"])


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3), st.integers(2, 6))
def test_values_of_a_mean_and_a_deviation_have_them(mean, deviation, count):
    values = alike(mean, deviation, count)
    assert len(values) == count
    assert statistics.fmean(values) == pytest.approx(mean, abs=1e-9)
    assert statistics.stdev(values) == pytest.approx(deviation, rel=1e-9, abs=1e-9)


def test_every_kept_table_of_the_checkout_can_be_judged():
    kept = read_folder(ROOT / "results" / "sweeps")
    named = {p.stem for p in (ROOT / "results" / "sweeps").glob("*.csv")}
    usual = {s.space.name: s.space.usual_scale for s in kept}
    assert {n if s.scale == usual[n] else f"{n}-{s.scale}" for s in kept if (n := s.space.name)} == named
    assert len(kept) == len(named)
    for one in kept:
        assert len(one.verdicts()) == len(one.space.claims)
        assert sum(one.counts.values()) == sum(len(e.outcomes) for e in one.entries) > 0


# -------------------------------------------------------------------- cards


def test_every_table_of_the_papers_is_a_card(found):
    named = [card.name for card in found]
    papers = [p.stem for p in SPACES.glob("*.yaml") if is_of_paper(read_space(p.stem))]
    assert sorted(named) == sorted([*papers, "mine"])
    assert named.index("ressl_table2") < named.index("ressl_table10") < named.index("genurl_fig5_nu")
    ran = {card.name for card in found if card.ran}
    assert ran == {NAME, "mine"}


def test_claims_are_counted_by_their_verdict(found):
    claims = sum(len(read_space(card.name).claims) for card in found if card.of_paper)
    kinds = counts(found)
    assert list(kinds) == list(KINDS)
    assert sum(kinds.values()) == claims
    assert (kinds["supported"], kinds["not run"]) == (1, claims - 1)
    assert "9 trials, 51 s" in total(found)
    assert f"1 of {len(found) - 1} tables" in total(found)


def test_the_docs_say_what_the_page_says(found, page):
    data = as_data(found)
    assert data["total"] == total(found)
    (table,) = [table for table in data["tables"]["superand"] if table["name"] == NAME]
    ((claim, verdict, numbers),) = table["claims"]
    assert verdict == "supported"
    assert claim in page
    assert numbers in page
    assert sum(map(len, data["tables"].values())) == len([c for c in found if c.of_paper])


def test_the_page_shows_numbers_charts_and_commands(found, page):
    assert "<td>90.33 ± 0.33 (3)</td><td>89.2</td>" in page
    assert "85.17 ± 0.24 (2), 1 collapsed" in page
    assert "My &lt;b&gt;own&lt;/b&gt; axes" in page
    assert "A &lt;b&gt; machine" in page
    assert "<b>own" not in page
    assert f"raysurl reproduce {NAME} scale=cpu" in page
    part = page.partition(f'id="{NAME}-')[2].partition("</section>")[0]
    here, paper = (json.loads(t.partition("</script>")[0]) for t in part.split('"application/json">')[1:3])
    assert here["data"][0]["x"] == pytest.approx([85.167, 80.333, 90.333])
    assert paper["data"][0]["x"] == [89.1, 87.5, 89.2]
    never = page.partition('id="ressl_table6-')[2].partition("</section>")[0]
    assert "not run <small>/ 89.52" in never
    assert '"type":"log"' in never
    assert page.count('class="ablation"') == len(found)


def test_a_command_names_the_data_as_the_head_of_its_space_does(found):
    for card in (card for card in found if card.of_paper):
        head = (SPACES / f"{card.name}.yaml").read_text().partition("# Command: ")[2].partition("\n")[0]
        if head:
            full = command(card.published, "full")
            assert ("data_root=" in full) == ("data_root=" in head), card.name
            assert full.startswith("raysurl reproduce" if card.published.paper else "raysurl sweep space=")


# -------------------------------------------------------------------- GPU hours

TREE = {"name": "s", "title": "S", "recipe": "ressl/cifar10", "seeds": [0, 1, 2], "fixed": {"train.epochs": 10},
        "axes": {"row": {"as measured": {}, "wide": {"encoder.name": "resnet50"}, "small": {"views.size": 16},
                         "other": {"recipe": "byol/cifar10"}}}}  # fmt: skip


@pytest.fixture(scope="module")
def speeds(tmp_path_factory):
    path = tmp_path_factory.mktemp("speeds") / "gpu.json"
    rows = [
        {"row": "plain", "settings": ["recipe=ressl/cifar10"], "images_per_s": 1000.0},
        {
            "row": "otherwise",
            "settings": ["recipe=ressl/cifar10", "train.cuda_graph=false"],
            "images_per_s": 9.0,
        },
        {"row": "views/s", "ours": 5.0},
    ]
    path.write_text(json.dumps({"device": "A card", "rows": rows}))
    return read_speeds(path)


def test_gpu_hours_are_those_of_the_measured_step_scaled_by_flops(speeds):
    tree = {**TREE, "axes": {"row": {"grid": TREE["axes"]["row"]}}}
    found = estimate(space_from(tree), speeds)

    def work(*settings):
        import torch

        recipe = load_recipe(["recipe=ressl/cifar10", *settings])
        return flops(encoder_of(recipe), torch.zeros(1, 3, 32, 32))

    hours = 3 * 10 * 50_000 / 1000 / 3600
    # as measured, as much slower as it is wider, and smaller ones not faster
    expected = hours * (1 + work("encoder.name=resnet50") / work() + 1)
    assert found.hours == {"plain": pytest.approx(expected)}
    assert (found.runs, found.samples) == (12, 12 * 10 * 50_000)
    assert found.without == {"no step of byol was measured": 3}
    assert "GPU hours on one A card" in found.sentence
    assert "no step of byol was measured (3 of 12 runs)" in found.sentence


def test_what_was_not_measured_is_not_estimated(speeds):
    found = estimate(read_space("genurl_table8"), speeds)
    assert found.hours == {}
    assert (
        "cannot be estimated: no step of genurl was measured" in found.sentence or "vectors" in found.sentence
    )


def test_the_kept_speeds_can_be_read():
    kept = read_speeds(ROOT / "results" / "benchmarks" / "gpu.json")
    assert {row.recipe.method.name for row in kept.rows} >= {"ressl", "rcl", "superand", "mvmr", "genurl"}


# -------------------------------------------------------------------- mistakes

GOOD = "init,mean,std,seeds,seconds\nrandom,90,1,3,5\n"
WRONG = {
    "a.txt": ("", "no CSV file"),
    "strange.csv": (GOOD, "after no space"),
    f"{NAME}.csv": ("a,b\n1,2\n", "is no table of space"),
    f"1/{NAME}.csv": ("\0\xff\0", ""),
    f"2/{NAME}.csv": ("", "is no table of space"),
    f"3/{NAME}.csv": (GOOD.replace("init", "method.init").replace("90", "many"), "mean=many is no number"),
    f"4/{NAME}.csv": (GOOD.replace("init", "method.init").replace(",3,", ",2.5,"), "seeds=2.5"),
    f"5/{NAME}.csv": (GOOD.replace("init", "method.init") + "full,1\n", "line 3 has 2 columns"),
    f"6/{NAME}.csv": (GOOD.replace("init", "method.init").replace("90", ""), "0 values of 3 seeds"),
    f"7/{NAME}.csv": (GOOD.replace("init", "method.init").partition("\n")[0] + "\n", "holds no cell"),
    "mine/sweep.json": ("{", "sweep"),
}


@settings(max_examples=30)
@given(st.data())
def test_a_damaged_table_is_read_or_refused(data):
    """Each by itself: other numbers in it, a part that is lost, bytes that are no text."""
    whole = (ROOT / "results" / "sweeps" / f"{NAME}.csv").read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    odd = data.draw(st.sampled_from([b"nan", b"-1", b"9" * 400, b",", b"\n", b'"', b"\0", b"\xff", b""]))
    damaged = whole[:at] + odd + whole[at + data.draw(st.integers(0, 20)) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{NAME}.csv"
        path.write_bytes(damaged)
        # anything else that it raises is a fault
        with contextlib.suppress(InputError):
            assert len(read_csv(path).verdicts()) == 1


def called(*arguments):
    return CliRunner().invoke(cli.group, ["ablations", *arguments], prog_name="raysurl")


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, why = WRONG[name]
    path = tmp_path / "results" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    given = tmp_path / "results" if name.startswith("mine") else path.parent
    found = called(f"results={given}")
    assert (found.exit_code, len(found.stderr.strip().splitlines())) == (2, 1), found.stderr
    assert why in found.stderr
    assert path.name.partition(".")[0] in found.stderr or str(given) in found.stderr
    assert not (tmp_path / "ablations.html").exists()


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("result=x", "did you mean results?"),
        ("results=nowhere", "is no folder"),
        ("output=page.txt", "output=FILE.html"),
        ("output=folder.html", "is a folder"),
        ("speeds=nowhere.json", "is no file"),
        ("speeds=speeds.json", "is not what pipelines/benchmark.py gpu writes"),
    ],
)
def test_a_wrong_setting_is_one_sentence(argument, why, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "speeds.json").write_text('{"rows": [{"settings": [], "images_per_s": "fast"}]}')
    given = [argument] if argument.startswith("result") else [f"results={results}", argument]
    found = called(*given)
    assert (found.exit_code, len(found.stderr.strip().splitlines())) == (2, 1), found.stderr
    assert why in found.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "speeds.json"]
