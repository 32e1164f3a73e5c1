"""Linear probes as the papers train them: named by recipes, told in the docs, and shared out among ranks."""

import re

import numpy as np
import pytest
import torch
from places import ROOT, SHARED

from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.evaluate.augmenting import check_views
from raysurl.evaluate.evaluator import Evaluator, Networks
from raysurl.recipe import load_recipe
from raysurl.recipe.detections import Detection
from raysurl.recipe.probes import PROBES
from raysurl.recipe.tunings import TUNINGS
from raysurl.runtime import LocalRuntime
from raysurl.testing.ranks import on_ranks
from raysurl.train import local

PAGE = ROOT / "docs" / "protocols.md"
PAPERS = {"ReSSL": "ressl", "RCL": "rcl", "MV-MR": "mvmr", "GenURL": "genurl"}


def _rows(table):
    """Preset -> what its paper says, and what is done, of a table of the page."""
    part = PAGE.read_text().partition(table)[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): tuple(row[1:]) for row in rows if len(row) == 3 and "eval." not in row[0]}


TABLES = {"## Linear": PROBES, "## Fine-tuning": TUNINGS}
presets = pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in TABLES for name in TABLES[table]]
)


@presets
def test_the_page_says_what_is_done(table, name):
    assert _rows(table)[name][1] == TABLES[table][name].words()


@presets
@pytest.mark.skipif(not (SHARED / "papers").is_dir(), reason="the papers are not at hand")
def test_the_page_quotes_the_papers(table, name):
    said = _rows(table)[name][0]
    if said.startswith("as `"):
        said = _rows(table)[said.split("`")[1]][0]
    if said.startswith("["):
        return  # no paper's
    text = _letters((SHARED / "papers" / f"{PAPERS[said.partition(',')[0]]}.txt").read_text())
    parts = [part for quote in re.findall("“(.*?)”", said) for part in quote.split("…")]
    assert parts or name == "ressl_conference"
    for part in parts:
        assert _letters(part) in text, part


@pytest.mark.skipif(not (SHARED / "papers").is_dir(), reason="the papers are not at hand")
@pytest.mark.parametrize("table", ["## Images that", "## Detection"])
def test_other_protocols_quote_the_papers_too(table):
    part = PAGE.read_text().partition(table)[2].partition("\n## ")[0]
    cells = [
        line.split(" | ")[1] for line in part.splitlines() if line.startswith("| `") or "the default" in line
    ]
    quoted = [cell for cell in cells if "“" in cell]
    assert quoted
    for cell in quoted:
        text = _letters((SHARED / "papers" / f"{PAPERS[cell.partition(',')[0]]}.txt").read_text())
        for quote in (piece for found in re.findall("“(.*?)”", cell) for piece in found.split("…")):
            assert _letters(quote) in text, quote


def test_the_page_says_how_a_detector_is_trained():
    assert f"| {Detection().words()} |" in PAGE.read_text()


def _letters(text):
    """Words and numbers alone: a paper's text has its formulas in TeX, and cites."""
    return re.sub(r"\[\d+\]|[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize(
    ("recipe", "probe"),
    [("genurl/tiny_imagenet", "genurl_tiny"), ("genurl/imagenet", "genurl_imagenet"), ("rcl/imagenet", "rcl"),
     ("mvmr/stl10", "mvmr"), ("ressl/imagenet", "ressl_imagenet"), ("ressl/imagenet_multicrop", "ressl_imagenet"),
     ("ressl/imagenet_conference", "ressl_conference"), ("ressl/stl10", "ressl")],
)  # fmt: skip
def test_recipes_name_the_probe_of_their_paper(recipe, probe):
    assert load_recipe([f"recipe={recipe}"]).eval.linear_probe == PROBES[probe]


def test_vectors_under_a_probe_that_augments_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", data=np.ones((9, 4), np.float32), labels=np.arange(9) % 3)
    given = [
        "data.name=npz",
        f"data.path={tmp_path / 'v.npz'}",
        "views.policies.student_1=plain",
        "encoder.name=mlp",
    ]
    for probe in ("genurl_stl10", "rcl"):
        recipe = load_recipe([*given, f"eval.probe={probe}"])
        samples = open_samples(recipe.data, "train", seed=0)
        with pytest.raises(InputError, match=r"protocol linear .*linear_augment=plain"):
            check_views(recipe, samples)
        for fine in ("eval.linear_augment=plain", "eval.protocols=[knn]"):
            check_views(load_recipe([*given, f"eval.probe={probe}", fine]), samples)


def _final(rank, world_size, probe):
    """Metrics of an untrained encoder on digits."""
    recipe = load_recipe([
        "recipe=ressl/digits", "eval.protocols=[linear]", "data.limit=150",
        "eval.linear_epochs=5", "eval.linear_batch_size=16", *probe,
        "eval.batch_size=64",
    ])  # fmt: skip
    sources = local.open_sources(
        recipe, *(open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    )
    runtime = LocalRuntime(torch.device("cpu"), rank=rank, world_size=world_size)
    found = Evaluator(recipe, runtime, *sources).final(Networks(encoder_of(recipe)))
    return {name: float(value) for name, value in found.metrics.items()}


@pytest.mark.slow
def test_all_ranks_embed_the_views_of_a_probe():
    probe = ["eval.probe=genurl_cifar10", "eval.linear_lr=[30, 0.1]"]
    alone, (first, second) = _final(0, 1, probe), on_ranks(_final, 2, 2, probe)
    assert second == {}
    assert first == pytest.approx(alone, abs=0.5)
    assert (
        alone["eval/linear_top1"] != _final(0, 1, [*probe, "eval.linear_augment=plain"])["eval/linear_top1"]
    )
