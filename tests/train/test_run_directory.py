"""A run directory is continued by the recipe it was begun with, and by no other."""

import pytest
import yaml

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
