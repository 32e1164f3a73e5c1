"""The main job: from arguments to a finished run directory."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.errors import InputError
from raysurl.paths import given_path
from raysurl.recipe import Recipe, dump, load_recipe, read_stored, split_argument

RECIPE = ("",)  # every setting of a recipe


def main(arguments: Sequence[str]) -> None:
    """`pretrain.py [recipe=NAME] [key=value …] [--print]`."""
    recipe = read_recipe([a for a in arguments if a != "--print"])
    if "--print" in arguments:
        print(dump(recipe), end="")
        return
    from raysurl.report.terminal import show_run
    from raysurl.run import pretrain  # torch and all of training, which a mistake need not wait for

    show_run(pretrain(recipe))


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """The recipe of the arguments; with resume=true they are changes to the stored recipe."""
    given = dict(split_argument(a) for a in arguments)
    if given.get("resume", "false").lower() not in ("true", "yes", "on", "1"):
        return load_recipe(arguments)
    if not given.get("output"):
        raise InputError("resume=true needs output=DIR, the run directory to continue")
    run_dir = given_path("output", given["output"])
    if not (run_dir / "recipe.yaml").is_file():
        raise InputError(f"output={given['output']} has no recipe.yaml, so there is no run to resume")
    stored = read_stored(run_dir)
    named = stored.get("recipe")
    if "recipe" in given and given["recipe"] != named:
        raise InputError(
            f"the run in {given['output']} was started with recipe={named}, not {given['recipe']}"
        )
    changes = [f"streams={stored['streams']}", *(a for a in arguments if not a.startswith("recipe="))]
    return load_recipe([f"recipe={run_dir / 'recipe.yaml'}", *changes]).model_copy(update={"recipe": named})
