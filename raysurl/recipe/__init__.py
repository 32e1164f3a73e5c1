"""A recipe: one validated, typed description of a run. Nothing here imports torch or opens anything but YAML."""

from raysurl.recipe.evaluation import Evaluation
from raysurl.recipe.files import (
    merge,
    packaged_recipes,
    parse_yaml,
    read_mapping,
    read_recipe_file,
    read_stored,
)
from raysurl.recipe.method_config import MethodConfig
from raysurl.recipe.model import DEFAULT_METHOD, Recipe, method_config, recipe_from
from raysurl.recipe.reading import (
    continued,
    dump,
    load_recipe,
    of_one_set,
    overridden,
    recipe_of,
    recipe_of_trained,
    split_argument,
    take,
    typed,
    yaml_argument,
)
from raysurl.recipe.schema import Section, nearest
from raysurl.recipe.sections import MOST_THREADS, Data, Optimizer, Schedule, Train, Views
from raysurl.recipe.warmup import shortened

__all__ = [
    "DEFAULT_METHOD",
    "MOST_THREADS",
    "Data",
    "Evaluation",
    "MethodConfig",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Section",
    "Train",
    "Views",
    "continued",
    "dump",
    "load_recipe",
    "merge",
    "method_config",
    "nearest",
    "of_one_set",
    "overridden",
    "packaged_recipes",
    "parse_yaml",
    "read_mapping",
    "read_recipe_file",
    "read_stored",
    "recipe_from",
    "recipe_of",
    "recipe_of_trained",
    "shortened",
    "split_argument",
    "take",
    "typed",
    "yaml_argument",
]
