"""The main job: from arguments to a finished run directory."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.recipe import Recipe, continued, dump, recipe_of, split_argument

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
    resumes = given.get("resume", "false").lower() in ("true", "yes", "on", "1")
    return continued(given) if resumes else recipe_of(given)
