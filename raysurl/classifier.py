"""`classifier-NAME.safetensors`: an encoder with its linear layer, as it was fine-tuned, and the classes that it knows.

The metadata hold the sections of the recipe and the range of pixels that say how to feed it, and the classes by number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysurl import plain, plugins
from raysurl.data.depth import Depth
from raysurl.data.source import Source
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.paths import given_path, whole
from raysurl.recipe import Recipe, recipe_of_trained


@dataclass(frozen=True)
class StoredClassifier:
    """`network`: images (b, 3, S, S) -> scores (b, C). `values` and `names` (C,): what the data call the classes.

    `depth`: the range of pixels wider than a byte that it was trained with.
    """

    recipe: Recipe
    network: nn.Module
    values: list[int]
    names: list[str] | None
    depth: Depth | None = None


class Scores(nn.Module):
    """An encoder under a linear layer."""

    def __init__(self, encoder: nn.Module, fc: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.fc = encoder, fc

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.encoder(x).float())
        return out


def write_classifiers(
    folder: Path, classifiers: Mapping[str, nn.Module], recipe: Recipe, source: Source
) -> None:
    """One file for each, whose parameters are `encoder.…` and `fc.…`."""
    names, values = source.class_names, source.label_values
    for name, network in classifiers.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        count = len(tensors["fc.bias"])
        # an unlabelled tail of the classes, or a test set with more, leaves the names short
        known = None if names is None or len(names) < count else list(names[:count])
        described = {
            "encoder": recipe.encoder.model_dump_json(),
            "views": recipe.views.model_dump_json(exclude={"policies"}),
            "norm": json.dumps(recipe.norm),
            "margin": json.dumps(recipe.eval.margin),
            "depth": json.dumps(source.depth and source.depth.tree()),
            "classes": json.dumps(known),
            "values": json.dumps(list(values[:count]) if values else list(range(count))),
            "plugins": json.dumps(plugins.pins_of(recipe.encoder.name, recipe.plugins or {})),
        }
        with whole(folder / f"classifier-{name}.safetensors") as partial:
            save_file(tensors, partial, metadata=described)


def load_classifier(run: str, overrides: Mapping[str, str] | None = None) -> StoredClassifier:
    """The classifier of a file, or the only one of a folder; its recipe is changed by `overrides` as they were typed.

    Raises InputError where there is none, or several, or the file is none.
    """
    path = _file(given_path("run", run).absolute())
    try:
        with safe_open(path, "pt") as file:
            said = {key: plain.parsed(text) for key, text in (file.metadata() or {}).items()}
        tensors = load_file(path)
        tree = {"encoder": said["encoder"], "views": said["views"], "norm": said["norm"]}
        tree |= {"eval": {"margin": said["margin"]}, "plugins": said.get("plugins")}
        classes, width = tensors["fc.weight"].shape
        values = TypeAdapter(list[int]).validate_python(said["values"], strict=True)
        names = TypeAdapter(list[str] | None).validate_python(said["classes"], strict=True)
        depth = Depth.of_tree(said.get("depth"))
        if len(values) != classes:
            raise ValueError("its classes are not those of its layer")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        raise InputError(f"run={path} is not a classifier that fine-tuning wrote") from None
    recipe = recipe_of_trained(tree, overrides or {})
    network = Scores(encoder_of(recipe), nn.Linear(width, classes))
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise InputError(
            f"run={path} does not fit encoder.name={recipe.encoder.name}; leave encoder.… out"
        ) from None
    return StoredClassifier(recipe, network.eval(), values, names, depth)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("classifier-*.safetensors"))
    if not found:
        raise InputError(
            f"run={path} holds no classifier-*.safetensors; fine-tune it: evaluate.py run={path}"
            " eval.protocols=[finetune]"
        )
    if len(found) > 1:
        raise InputError(
            f"run={path} holds several classifiers; name one: {', '.join(p.name for p in found)}"
        )
    return found[0]
