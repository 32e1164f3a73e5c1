"""The map of a run: which samples are on it, their thumbnails, what is known of them, and what the page says."""

import base64
import io
import json
import re

import numpy as np
import pytest
import small_run
from PIL import Image

from raysurl import overview
from raysurl.recipe import load_recipe
from raysurl.report import map as map_page
from raysurl.report import write_report
from raysurl.report.run import read_run
from raysurl.train import embedding


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return small_run.mapped_run(tmp_path_factory.mktemp("map") / "run")


@pytest.fixture(scope="module")
def arrays(run_dir):
    with np.load(run_dir / "samples" / "map.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.slow
def test_the_map_is_of_train_and_test_samples_with_their_own_thumbnails(run_dir, arrays):
    from sklearn.datasets import load_digits

    count = len(arrays["points"])
    assert np.bincount(arrays["split"]).tolist() == [60, 360]
    assert len({*zip(arrays["split"].tolist(), arrays["index"].tolist(), strict=True)}) == count
    assert np.isfinite(arrays["points"]).all()
    tiles = map_page.RunMap(read_run(run_dir)).tiles
    assert tiles.shape == (420, 8, 8, 3)
    # each thumbnail is the picture of a digit of that class
    every = load_digits()
    pictures = (every.images * 255 / 16).round()
    for tile, label in zip(tiles, arrays["labels"], strict=True):
        distance = np.abs(pictures - tile[..., 0]).max(axis=(1, 2))
        assert every.target[distance.argmin()] == label
        assert distance.min() <= 2


def test_a_run_of_few_steps_and_one_that_wants_none_have_no_map(tmp_path, monkeypatch):
    assert not (small_run.finished_run() / "samples" / "map.npz").exists()
    assert "<h2>Map</h2>" not in (small_run.finished_run() / "report.html").read_text()
    recipe = load_recipe([*small_run.SETTINGS, f"output={tmp_path / 'run'}", "eval.map_points=0"])
    assert recipe.eval.map_points == 0
    overview.write_map(tmp_path)  # nothing was left for it
    assert not list(tmp_path.iterdir())


def test_the_page_carries_what_the_script_draws(run_dir, arrays):
    html = write_report(run_dir).read_text()
    part = html.partition("<h2>Map</h2>")[2].partition("</section>")[0]
    about = json.loads(re.search(r'application/json">(.*?)</script>', part)[1])
    assert about["count"] == 420
    x = np.frombuffer(base64.b64decode(about["x"]), "<f4")
    assert (x == arrays["points"][:, 0]).all()
    near = np.frombuffer(base64.b64decode(about["neighbours"]), "<u2").reshape(420, about["each"])
    assert (near == arrays["neighbours"]).all()
    assert not (near == np.arange(420)[:, None]).any()
    colours = {c["name"]: c for c in about["colours"]}
    assert list(colours) == ["class", "error of kNN", "cluster of k-means", "split"]
    values = np.frombuffer(base64.b64decode(colours["class"]["values"]), "<i4")
    assert (values == arrays["labels"]).all()
    assert colours["split"]["words"] == ["train", "test"]
    picture = re.search(r"data:image/webp;base64,([^\"]+)", part)[1]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.width == about["side"] * about["columns"]


def test_planted_copies_and_outliers_are_found_and_errors_are_counted():
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 16))
    labels = np.arange(200) % 4
    rows = (centres[labels] + 0.1 * random.normal(size=(200, 16))).astype(np.float32)
    rows[7] = rows[3] + 1e-4
    rows[11] = -3 * centres[3]
    labels[40] = (labels[40] + 1) % 4
    split = (np.arange(200) >= 150).astype(np.uint8)
    found = overview.curated(rows, {"labels": labels, "split": split}, 0)
    assert found["pairs"][0].tolist() == [3, 7]
    assert found["pair_cosines"][0] > 0.999
    assert found["outliers"][0] == 11
    assert found["right"][[40, 11]].tolist() == [0, 0]
    assert found["right"].sum() >= 190
    assert found["neighbours"][7, 0] == 3
    unknown = overview.curated(rows, {"labels": np.full(200, -1), "split": split}, 0)
    assert (unknown["right"] == -1).all()


def test_the_fit_is_the_same_each_time_and_equal_rows_have_a_map_too(monkeypatch):
    monkeypatch.setattr(overview, "STEPS", 4)
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    assert (overview.points_of(rows, 3) == overview.points_of(rows, 3)).all()
    assert np.isfinite(overview.points_of(np.ones((60, 8), np.float32), 0)).all()


def test_thumbnails_keep_within_their_room():
    for count in (20, 500, 1797, 5000, 10_000):
        side = embedding.side_of(count, 224)
        assert side**2 * count <= embedding.PIXELS
    assert embedding.side_of(500, 8) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"neighbours": np.full((420, 9), 420)},
        {"points": np.full((420, 2), np.nan)},
        {"labels": np.zeros(3, int)},
        {"cosines": np.zeros((420, 2))},
        {"pairs": np.array([[0, 420]]), "pair_cosines": np.ones(1)},
        {"outliers": np.array([-1])},
        {"points": np.array(["a"] * 420)},
        {"points": np.array(1.0)},
        {"labels": np.full(420, 2**60)},
        {"right": np.full(420, np.nan)},
        {"side": np.array([8, 8]), "copies": np.array("x"), "threshold": np.array([])},
        {"clusters": np.full((2, 420), np.nan)},
        {"pair_cosines": np.full(3, "x"), "outliers": np.full(4, 0.5)},
    ],
)
def test_a_damaged_map_does_not_cost_the_report(tmp_path, arrays, run_dir, change):
    for name in ("recipe.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "map.npz", **{**arrays, **change})
    sheet = (run_dir / "samples" / embedding.SHEET).read_bytes()
    (tmp_path / "samples" / embedding.SHEET).write_bytes(sheet)
    run = map_page.RunMap(read_run(tmp_path))
    harmless = {"pairs", "outliers", "side", "clusters"} & set(change)
    assert bool(map_page.section(run)) == bool(harmless)
    shown = harmless & {"outliers", "clusters"} and "pair_cosines" not in change and len(arrays["pairs"])
    assert bool(map_page.copies(run)) == bool(shown)
    assert bool(map_page.outliers(run)) == bool(harmless & {"pairs", "clusters"})
    assert "<h1>" in write_report(tmp_path).read_text()
