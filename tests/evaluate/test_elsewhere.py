"""A run that is judged by other data too: the names, the numbers, and what is refused before it trains."""

import json

import pytest
import torch
from small_run import SETTINGS
from voc_files import voc_files

from raysurl import run
from raysurl.commands import evaluate as command
from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.evaluate.elsewhere import final_names_at
from raysurl.evaluate.expected import final_names
from raysurl.recipe import load_recipe

VOC = '{data: {name: "voc:2007", path: "%s"}, protocols: [svm]}'
GIVEN = [*SETTINGS[:-3], "eval.protocols=[knn]", "eval.knn_k=[5]", "scale.threads=1", "eval.svm_shots=[4]",
         "eval.svm_costs=[0.5]", "eval.baselines=false"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("elsewhere")
    voc_files(root)
    places = f"eval.elsewhere={{voc07: {VOC % root}, digits: {{data: {{name: digits}}, protocols: [knn], size: 4}}}}"
    recipe = load_recipe([*GIVEN, places, f"output={root / 'run'}"])
    return root, recipe, run.pretrain(recipe)


@pytest.mark.slow
def test_the_run_has_the_numbers_that_evaluate_gives_for_those_data(finished):
    root, _, run_dir = finished
    metrics = json.loads((run_dir / "results.json").read_text())["metrics"]
    alone = [f"run={run_dir}", "eval.elsewhere={}"]
    command.main(
        [*alone, "data.name=voc:2007", f"data.path={root}", "data.limit=null", "eval.protocols=[svm]"]
    )
    there = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    for name in ("svm_map", "svm_map11", "svm4_map"):
        assert metrics[f"eval/voc07_{name}"] == there[f"eval/{name}"]
    command.main([*alone, "data.limit=null", "views.size=4"])
    there = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    assert metrics["eval/digits_knn5_top1"] == there["eval/knn5_top1"] != metrics["eval/knn5_top1"]
    command.main([f"run={run_dir}"])
    again = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    assert {name: again[name] for name in again if name.startswith("eval/")} == {
        name: value for name, value in metrics.items() if name.startswith("eval/")
    }


def test_what_it_will_have_is_known_before(finished):
    _, recipe, run_dir = finished
    metrics = json.loads((run_dir / "results.json").read_text())["metrics"]
    samples, test = (open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    expected = final_names(recipe, run.division_of(samples, test))
    expected |= final_names_at(recipe, run.divisions_elsewhere(recipe))
    assert {name for name in metrics if name.startswith("eval/")} == {
        name for name in expected if name.startswith("eval/")
    }
    intervals = json.loads((run_dir / "results.json").read_text())["intervals"]
    assert len(intervals["eval/voc07_svm_map"]) == 2
    assert torch.is_tensor(torch.tensor(metrics["eval/voc07_svm_map"]))


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ('{voc07: {data: {name: "voc:2007", path: "nowhere"}, protocols: [svm]}}', r"voc07: .*does not exist"),
        ("{other: {data: {name: digits}, protocols: [svm]}}", r"other: .*svm needs images of several"),
        ("{pixels: {data: {name: digits}, protocols: [knn]}}", r"elsewhere\.pixels is no name"),
        ("{other: {data: {name: digits}, protocols: []}}", r"eval\.elsewhere\.other\.protocols=.* is not valid"),
        ("{other: {data: {nam: digits}, protocols: [knn]}}", "did you mean .*name"),
        ("{o_o: {data: {name: digits}, protocols: [knn]}}", "is not valid"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_there_is_said_before_training(places, said, tmp_path):
    with pytest.raises(InputError, match=said) as info:
        run.pretrain(load_recipe([*GIVEN, f"eval.elsewhere={places}", f"output={tmp_path / 'run'}"]))
    assert len(str(info.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()
