"""The report of a run directory: what it says, that it stands alone, and what it does with missing pieces."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysurl.errors import InputError
from raysurl.evaluate.headline import headline
from raysurl.recipe import dump, load_recipe
from raysurl.report import write_report
from raysurl.report.page import document
from raysurl.report.recipe import command
from raysurl.report.run import read_run

STEPS_PER_EPOCH = 20
METRICS = {
    "eval/knn_top1": 71.25,
    "eval/knn20_top1": 72.5,
    "eval/linear_top1": 75.0,
    "eval/untrained_linear_top1": 45.0,
    "eval/untrained_knn_top1": 41.25,
    "eval/pixels_knn_top1": 91.25,
    "health/rankme": 55.0,
    "health/std": 0.6,
    "train/loss": 5.25,
}
RESULTS = {
    "metrics": METRICS,
    "intervals": {"eval/linear_top1": [70.0, 79.5], "eval/pixels_knn_top1": [88.0, 94.0]},
    "best": {"eval/knn_top1": {"value": 73.75, "step": 40}},
    "seconds": 3725.0,
    "versions": {"torch": "2.11.0"},
    "commit": "abc1234",
    "hardware": "a processor",
    "skipped": [{"index": 7, "name": "cat/7.jpg", "reason": "truncated"}],
    "num_samples": 1438,
    "world_size": 2,
    "health": ["no gain: kNN accuracy 71.2 % does not exceed that of raw pixels."],
    "finished": True,
}
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects text, tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.scripts: list[tuple[str | None, str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.latest = attrs
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append((dict(self.latest).get("type"), data))
        elif self.open[-1:] != ["style"]:
            self.text += data


def step_line(step: int, **values: Any) -> dict[str, Any]:
    epoch = round(step / STEPS_PER_EPOCH, 5)
    return {
        "step": step,
        "epoch": epoch,
        "train/loss": 9 - step / 50,
        "train/lr": 0.06,
        "train/relation": 3.0,
        **values,
    }


def make_run(
    path: Path,
    *,
    overrides: tuple[str, ...] = ("train.epochs=5",),
    results: Any = RESULTS,
    samples: bool = True,
) -> Path:
    """A run of five epochs of 20 steps, evaluated after each epoch."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(dump(load_recipe([*overrides, f"output={path}"])))
    lines = [{"step": 0, "event": "1,438 images"}]
    for step in range(100):
        lines.append(
            step_line(step, **{"speed/images_per_s": 900.0, "speed/data_wait": 0.25, "health/std": 0.9})
        )
        if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1:
            lines.append({"step": step + 1, "eval/knn_top1": 50.0 + step / 5, "health/std": 0.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results is not None:
        (path / "results.json").write_text(json.dumps(results))
    if samples:
        save_samples(path)
    return path


def save_samples(path: Path) -> None:
    (path / "samples").mkdir()
    pixels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    np.savez(path / "samples" / "views.npz", original=pixels, student=pixels[..., ::-1], teacher=pixels)
    labels = np.full((2, 3), -1)
    labels[0] = [5, 5, 6]  # one neighbour agrees, one does not; the second row is unlabelled
    np.savez(
        path / "samples" / "neighbours.npz",
        images=np.zeros((2, 3, 8, 8, 3), np.uint8),
        labels=labels,
        similarity=np.array([[1, 0.75, 0.5]] * 2, np.float32),
    )


def report_of(path: Path) -> tuple[str, Page]:
    html = write_report(path).read_text(encoding="utf-8")
    return html, Page(html)


# ------------------------------------------------------------------ a whole run


def test_report_says_what_the_run_learned(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    html, page = report_of(path)
    assert (path / "report.html").is_file()
    assert not list(path.glob(".*partial"))
    assert "Linear probe: 75.0 % (70 to 79.5), 30.0 points above the untrained encoder." in page.text
    assert (
        "No gain: kNN accuracy 71.2 % does not exceed" in page.text
    )  # the health sentence, from results.json
    assert "Healthy" not in page.text
    for words in (
        "finished",
        "1 h 2 min",
        "abc1234",
        "a processor",
        "torch 2.11.0",
        "cat/7.jpg",
        "truncated",
    ):
        assert words in page.text
    rows = re.findall(r"<tr><td>(.*?)</tr>", html)
    cells = {row.partition(" <")[0]: re.findall(r">([\d.]+ (?:%|to)[^<]*)<", row) for row in rows}
    assert next(iter(cells)) == "Linear probe"  # the headline first
    assert cells["Linear probe"] == ["75.00 %", "70 to 79.5", "45.00 %"]
    assert cells["kNN, k = 200"] == ["71.25 %", "73.75 %", "41.25 %", "91.25 %", "88 to 94"]


def test_health_has_a_table_of_its_own_and_no_column_is_empty(tmp_path: Path) -> None:
    html, _ = report_of(make_run(tmp_path / "a"))
    tables = re.findall(r"<table><tr>(.*?)</tr>(.*?)</table>", html)
    heads = {tuple(re.findall(r"<th[^>]*>(.*?)</th>", head)): body for head, body in tables}
    accuracy = next(body for head, body in heads.items() if "Raw pixels" in head)
    health = heads[("Metric", "Last epoch")]
    assert "eval/knn_top1" in accuracy
    assert "health/" not in accuracy
    assert "health/rankme" in health
    assert "–" not in "".join(heads.values())


@pytest.mark.parametrize(
    ("metrics", "features", "smallest", "name"),
    [
        (["eval/knn_top1", "eval/linear_top1", "eval/lbfgs_top1"], "backbone", 500, "eval/linear_top1"),
        (["eval/knn_top1", "eval/lbfgs_top1"], "backbone", 500, "eval/lbfgs_top1"),
        (["eval/knn_top1", "eval/linear_top1"], "memory", 500, "eval/knn_top1"),
        (["eval/knn_top1", "eval/knn20_top1"], "backbone", 500, "eval/knn_top1"),
        (["eval/knn_top1", "eval/knn20_top1", "eval/knn5_top1"], "backbone", 20, "eval/knn20_top1"),
        (["eval/knn_top1", "eval/knn20_top1"], "memory", 10, "eval/knn20_top1"),
        (["eval/knn_top1", "eval/knn20_top1"], None, None, "eval/knn_top1"),
        (["eval/untrained_knn_top1", "health/std"], "backbone", 20, None),
    ],
)
def test_the_headline_is_what_papers_report(
    metrics: list[str], features: str | None, smallest: int | None, name: str | None
) -> None:
    assert headline(metrics, features, smallest) == name


def allowed(html: str) -> set[str]:
    """Digests of scripts that the page's policy lets run."""
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert "'unsafe-eval'" not in policy[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert set(rules) == {"default-src", "style-src", "img-src", "script-src"}
    assert rules["img-src"] == "data: blob:"
    return set(rules["script-src"].split())


def digest(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def test_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    html, page = report_of(make_run(tmp_path / "a"))
    assert not {"iframe", "object", "base", "form"} & set(page.tags)
    sources = [value or "" for _, name, value in page.attributes if name in {"src", "href", "srcset", "data"}]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import", style[1])


def test_the_scripts_of_the_page_are_its_own_and_no_other_may_run(tmp_path: Path) -> None:
    html, page = report_of(make_run(tmp_path / "a"))
    run = [text for kind, text in page.scripts if kind is None]
    packed = [text for kind, text in page.scripts if kind == "text/plain"]
    assert len(packed) == 1
    unpacked = zlib.decompress(base64.b64decode(packed[0]))
    assert b"plotly.js v" in unpacked[:100]
    assert {*map(digest, [text.encode() for text in run]), digest(unpacked)} == allowed(html)
    assert {kind for kind, _ in page.scripts} == {None, "text/plain", "application/json"}
    for kind, text in page.scripts:
        if kind == "application/json":
            assert json.loads(text)["data"]


def test_a_page_without_a_chart_has_no_script() -> None:
    html = document("t", "<p>words</p>")
    assert "<script" not in html
    assert "script-src" not in html


def test_curves_and_samples_are_there(tmp_path: Path) -> None:
    html, page = report_of(make_run(tmp_path / "a"))
    titles = re.findall(r"<figcaption><b>(.*?)</b>", html)
    assert titles[:3] == ["Training loss", "Accuracy", "relation"]
    assert {"Learning rate", "Images per second", "Share of time waiting for data"} <= set(titles)
    assert titles.count("Spread of the embeddings") == 2  # in training batches, and of the features
    assert len(titles) == len([kind for kind, _ in page.scripts if kind == "application/json"])
    assert page.tags.count("img") == 3 * 4 + 2 * 3
    assert html.count("✓ class 5") == 1
    assert html.count("✗ class 6") == 1
    accuracy = json.loads([text for kind, text in page.scripts if kind == "application/json"][1])
    assert [note["text"] for note in accuracy["layout"]["annotations"]] == ["untrained encoder 45 %"]


def test_the_last_record_of_a_step_wins(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", results=None, samples=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(3) | {"train/loss": 1.5}) + "\n")
        file.write(json.dumps({"step": 100, "eval/knn_top1": 12.5}) + "\n")
        file.write('{"step": 100, "eval/knn_t')  # cut by a kill
    run = read_run(path)
    assert len(run.steps) == 100
    assert run.steps[3]["train/loss"] == 1.5
    assert run.final["eval/knn_top1"] == 12.5
    assert run.final["health/std"] == 0.5  # from the features, not from a training batch
    assert run.x(50) == pytest.approx(2.5)


# ------------------------------------------------------------------ missing pieces


def test_an_interrupted_run(tmp_path: Path) -> None:
    _, page = report_of(make_run(tmp_path / "a", results=None, samples=False))
    assert "not finished" in page.text
    assert "last record is at epoch 4.95 of 5" in page.text
    assert "kNN, k = 200: 69.8 %; there is no baseline" in page.text
    assert "Healthy: no sign of collapse (feature spread 0.5, training spread 0.9)" in page.text
    assert "What the method saw" not in page.text


def test_health_is_diagnosed_where_results_are_missing(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", results=None, samples=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, "health/std": 0.001}) + "\n")
    _, page = report_of(path)
    assert "Collapsed: all images have nearly the same embedding" in page.text
    assert "Healthy" not in page.text


def test_a_run_without_labels(tmp_path: Path) -> None:
    results = {**RESULTS, "metrics": {"health/rankme": 55.0, "train/loss": 5.0}, "best": {}, "health": []}
    path = make_run(tmp_path / "a", results=results)
    lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "eval/" not in line]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    _, page = report_of(path)
    assert "No accuracy: the data has no labels" in page.text
    assert "Healthy: no sign of collapse (training spread 0.9, RankMe 55)" in page.text
    assert "Best on the test set" not in page.text


@pytest.mark.parametrize("kept", ["recipe.yaml", "metrics.jsonl"])
def test_any_part_may_be_missing_or_damaged(tmp_path: Path, kept: str) -> None:
    path = make_run(tmp_path / "a")
    for name in {"recipe.yaml", "metrics.jsonl", "results.json"} - {kept}:
        (path / name).write_text("{ damaged: [")
    for file in (path / "samples").iterdir():
        file.write_bytes(b"PK not a zip file")
    _, page = report_of(path)
    assert ("ressl" in page.text) == (kept == "recipe.yaml")
    assert ("Training loss" in page.text) == (kept == "metrics.jsonl")


def test_a_run_that_only_began(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", results=None, samples=False)
    (path / "metrics.jsonl").unlink()
    _, page = report_of(path)
    assert "it has no training step on record" in page.text
    assert "Health: not measured yet." in page.text


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    results = {
        **RESULTS,
        "metrics": {**METRICS, "eval/linear_top1": float("nan")},
        "seconds": None,
        "best": None,
    }
    path = make_run(tmp_path / "a", results=results)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(100) | {"train/loss": float("inf")}) + "\n")
    _, page = report_of(path)
    assert "not finite" in page.text
    data = "".join(text for kind, text in page.scripts if kind == "application/json")
    assert not re.search("nan|infinity", (page.text + data).lower().replace("nano", ""))


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        write_report(tmp_path)


# ------------------------------------------------------------------ escaping


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    path = make_run(tmp_path / "a", overrides=("train.epochs=5", f"data.path={json.dumps(evil)}"))
    results = {
        **RESULTS,
        "metrics": {**METRICS, f"eval/{evil}": 1.0},
        "versions": {evil: evil},
        "commit": evil,
        "hardware": evil,
        "skipped": [{"index": evil, "name": evil, "reason": evil}],
        "health": [f"{evil}: {evil}"],
    }
    (path / "results.json").write_text(json.dumps(results))
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(100) | {f"train/{evil}": 1.0}) + "\n")
        file.write(json.dumps({"step": 100, "event": evil}) + "\n")
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    np.savez(path / "samples" / "views.npz", **{"original": pixels, 'a<b>"c': pixels})
    html, page = report_of(path)
    assert not [text for _, text in page.scripts if "<script>alert" in text]
    assert {*map(digest, [text.encode() for kind, text in page.scripts if kind is None])} < allowed(html)
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert {name for _, name, _ in page.attributes} <= {
        *("class", "style", "alt", "src", "lang", "charset", "http-equiv", "content", "name"),
        *("type", "id", "rel", "href"),
    }


# ------------------------------------------------------------------ recipe


def test_what_differs_from_the_defaults_is_marked(tmp_path: Path) -> None:
    policy = "views.policies.teacher_1={crop: [0.5, 1.0]}"
    overrides = ("train.epochs=5", "method.tau_teacher=0.07", "data.name=digits", "views.size=12", policy)
    html, _ = report_of(make_run(tmp_path / "a", overrides=overrides))
    assert re.search(r'<dt class="new">tau_teacher</dt><dd class="new">0\.07', html)
    assert re.search(r'<dt class="new">size</dt><dd class="new">12', html)
    assert re.search(r"<dt>momentum</dt><dd>", html)
    assert "<td>method.tau_teacher</td><td>0.07</td><td>0.04</td>" in html
    # view policies are folded, beside what the method's own are
    before, _, folded = html.partition("<details><summary>")
    assert "views.policies" not in before
    assert re.match(r"\d+ settings? of the views</summary>", folded)
    assert "<td>views.policies.teacher_1.crop</td><td>[0.5, 1.0]</td><td>[0.2, 1.0]</td>" in folded


def test_the_command_gives_the_same_recipe_again(tmp_path: Path) -> None:
    overrides = (
        "train.epochs=5",
        "method.tau_teacher=0.07",
        "data.name=folder",
        "data.path=/a folder/it's here",
        "train.schedule.milestones=[0.5, 0.9]",
        "seed=3",
    )
    run = read_run(make_run(tmp_path / "a", overrides=overrides))
    words = shlex.split(command(run))
    assert words[:2] == ["python", "pipelines/pretrain.py"]
    again = load_recipe(words[2:]).model_dump(mode="json")
    assert {**again, "output": None} == {**run.recipe, "output": None}
