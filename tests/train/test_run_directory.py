"""A run directory is continued by the recipe it was begun with, and by no other."""

from pathlib import Path

import pytest
import yaml

from raysurl import paths
from raysurl.errors import InputError
from raysurl.recipe import load_recipe
from raysurl.train import run_directory


def begun(tmp_path, *arguments):
    recipe = load_recipe(["data.name=digits", f"output={tmp_path}/run", *arguments])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return recipe


def test_a_setting_that_has_come_since_has_its_default_on_resume(tmp_path):
    recipe = begun(tmp_path)
    stored = tmp_path / "run" / "recipe.yaml"
    tree = yaml.safe_load(stored.read_text())
    del tree["teacher"], tree["train"]["rounds"]
    stored.write_text(yaml.safe_dump(tree))
    with run_directory.claim(recipe.model_copy(update={"resume": True})) as (_, run_dir):
        assert run_dir == tmp_path / "run"


def test_another_recipe_is_refused_on_resume(tmp_path):
    begun(tmp_path, "train.epochs=3")
    other = load_recipe(["data.name=digits", f"output={tmp_path}/run", "train.epochs=4", "resume=true"])
    with pytest.raises(InputError, match=r"train\.epochs=3, not 4"), run_directory.claim(other):
        pass


def test_the_time_of_an_epoch_is_the_median_of_the_later_half():
    """An offline clustering is made before each epoch after the warm-up: the early ones say nothing of it."""
    assert run_directory.Spent(epochs=[1, 1, 1, 5, 7, 6]).epoch_s == 6
    assert run_directory.Spent(epochs=[3.0]).epoch_s == 3.0
    assert run_directory.Spent().epoch_s is None


@pytest.mark.parametrize(
    "content", [b"", b"\n# nothing\n", b"{}", b"train: {epochs: 3\n", b"\0\xff", b"- 1", b"17"]
)
def test_a_recipe_that_is_damaged_is_refused_on_resume(tmp_path, content):
    recipe = begun(tmp_path)
    stored = tmp_path / "run" / "recipe.yaml"
    stored.write_bytes(content)
    resumed = recipe.model_copy(update={"resume": True})
    with pytest.raises(InputError, match=f"^{stored} "), run_directory.claim(resumed):
        pass
    assert stored.read_bytes() == content


def test_a_place_for_checkpoints_that_is_none_is_refused_before_training(tmp_path):
    recipe = begun(tmp_path)
    (tmp_path / "run" / "checkpoints").write_text("x")
    resumed = recipe.model_copy(update={"resume": True})
    with pytest.raises(InputError, match="is no folder"), run_directory.claim(resumed):
        pass


@pytest.mark.parametrize(
    "text", ["s3://bucket/run", "gs://b/r", "hf://datasets/x", "file:///tmp/x", "s3:/bucket"]
)
def test_results_go_to_no_uri(text):
    with pytest.raises(InputError, match=f"output={text} is a URI.* write output=/A/FOLDER"):
        paths.place("output", text)


def test_what_a_submitted_job_would_lose_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.place("output", "runs/a") == tmp_path / "runs" / "a"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", "/home/me")
    for text in ("runs/a", "./a", "../a", str(tmp_path / "a")):
        with pytest.raises(InputError, match=r"would be lost: .* for example to=/home/me/raysurl-runs/a$"):
            paths.place("to", text)
    assert paths.place("output", "~/a") == Path("/home/me/a")
    assert paths.default_place("sweeps") == Path("/home/me/raysurl-runs")
