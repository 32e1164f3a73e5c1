"""A trained encoder with the recipe that says how to feed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from raysurl import build
from raysurl.errors import InputError
from raysurl.recipe import Recipe, merge, overrides_tree, parse_override, read_mapping, recipe_from


@dataclass(frozen=True)
class Trained:
    recipe: Recipe
    encoder: nn.Module
    where: Path  # the run directory, or the folder of the encoder file


def load(arguments: Sequence[str], *, also: Sequence[str] = ()) -> tuple[Trained, dict[str, Any]]:
    """The encoder of `run=DIR` (or `run=encoder.safetensors`), its recipe changed by the other arguments.

    `also`: keys that belong to the command and not to the recipe; they are returned. Raises InputError if the run
    has no encoder yet, or the weights do not fit.
    """
    given = dict(parse_override(a) for a in arguments)
    mine = {key: given.pop(key) for key in ("run", *also) if key in given}
    if not mine.get("run"):
        raise InputError("name what to use: run=DIR of a finished run, or run=FILE of an encoder.safetensors")
    path = Path(str(mine["run"])).expanduser().absolute()
    stored = path / "recipe.yaml"
    if stored.is_file():
        tree = read_mapping(stored, str(stored), "recipe keys")
    elif path.is_file():
        tree = _described(path)
    else:
        raise InputError(
            f"run={path} is neither a run directory (with recipe.yaml) nor an encoder.safetensors"
        )
    if path.is_dir() and not (path / "encoder.safetensors").is_file():
        raise InputError(
            f"run={path} has no encoder.safetensors yet; finish it with resume=true output={path}"
        )
    merge(tree, overrides_tree(given))
    recipe = recipe_from(tree)
    encoder = build.encoder_of(recipe)
    encoder.load_state_dict(build.encoder_weights(path, encoder))
    return Trained(recipe, encoder, path if path.is_dir() else path.parent), mine


def _described(path: Path) -> dict[str, Any]:
    """What an encoder file says of itself: its network and how its images are prepared."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        raise InputError(f"run={path} is not a readable encoder.safetensors file") from None
    tree = {key: json.loads(metadata[key]) for key in ("encoder", "views") if key in metadata}
    tree.get("views", {}).pop("policies", None)
    return tree
