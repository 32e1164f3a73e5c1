"""A run evaluated again by itself, with its memory, and baselines of the quantity that its kNN is of."""

import json
import shutil

import pytest
import torch

from raysurl.build import method_of
from raysurl.commands import evaluate
from raysurl.data.names import open_samples
from raysurl.embed import embed
from raysurl.evaluate import knn_classify
from raysurl.recipe import load_recipe
from raysurl.run import pretrain
from raysurl.train import local

SETTINGS = (
    "recipe=superand/cifar10", "runtime=local", "data.name=digits", "data.limit=256", "views.size=8",
    "encoder.name=convnet", "encoder.sobel=false", "encoder.small_stem=false", "encoder.channels=[8,16]",
    "method.dim=16", "train.batch_size=64", "train.epochs=2", "train.rounds=2", "train.schedule.warmup_epochs=0",
    "scale.threads=1", "eval.every_epochs=0", "eval.protocols=[knn,linear]", "eval.linear_epochs=2",
    "eval.knn_k=[20]", "log.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module", params=["memory", pytest.param("embedding", marks=pytest.mark.slow)])
def run_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return pretrain(load_recipe([*SETTINGS, f"eval.features={request.param}", f"output={folder}"]))


def metrics_of(file):
    return json.loads(file.read_text())["metrics"]


@pytest.mark.slow
def test_a_run_with_memory_evaluates_to_its_own_numbers_again(run_dir):
    evaluate.main([f"run={run_dir}"])
    first = metrics_of(run_dir / "results.json")
    assert metrics_of(run_dir / "evaluation.json") == {k: v for k, v in first.items() if k != "train/loss"}
    assert first["eval/knn20_top1"] != first["eval/backbone_knn20_top1"]


@pytest.mark.slow
def test_each_knn_has_a_baseline_of_its_own_quantity(run_dir):
    found, recipe = metrics_of(run_dir / "results.json"), load_recipe([f"recipe={run_dir}/recipe.yaml"])
    names = [name for name in found if "knn" in name and not name.startswith("eval/pixels")]
    mine = {name.replace("eval/", "eval/untrained_") for name in names if "untrained" not in name}
    assert mine == {name for name in names if "untrained" in name}
    samples, test = (open_samples(recipe.data, part, seed=recipe.seed) for part in ("train", "eval"))
    source, test_source = local.open_sources(recipe, samples, test)
    made, sides = method_of(recipe, num_samples=len(source.readable)), []
    made.eval()
    for network in (made.embedder, made.encoder):  # the untrained method's, and the untrained backbone's
        rows = [
            embed(network, each, recipe, torch.device("cpu"), each.readable.nonzero()[0])
            for each in (source, test_source)
        ]
        labels = [torch.from_numpy(each.labels) for each in (source, test_source)]
        guess = knn_classify(rows[0], labels[0], rows[1], k=20, num_classes=10)
        sides.append(100 * float((guess == labels[1]).float().mean()))
    assert found["eval/untrained_knn20_top1"] == pytest.approx(sides[0], abs=0.01)
    assert found["eval/untrained_backbone_knn20_top1"] == pytest.approx(sides[1], abs=0.01)


@pytest.mark.slow
def test_a_run_whose_checkpoint_is_gone_says_that_its_knn_is_of_the_backbone(run_dir, tmp_path, capsys):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    evaluate.main([f"run={folder}", "eval.baselines=false"])
    assert "kNN is of the backbone" in capsys.readouterr().out
    found, first = metrics_of(folder / "evaluation.json"), metrics_of(run_dir / "results.json")
    assert found["eval/knn20_top1"] == first["eval/backbone_knn20_top1"]


@pytest.mark.slow
def test_memory_of_other_samples_is_not_compared_with(run_dir, capsys):
    evaluate.main([f"run={run_dir}", "data.limit=200", "eval.baselines=false"])
    said = "memory is of other samples" in capsys.readouterr().out
    assert said == ("memory" in str(run_dir.parent.name))
