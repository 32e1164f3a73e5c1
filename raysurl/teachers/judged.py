"""A teacher in place of an encoder of ours, to be judged by the same protocols (MV-MR, Table 4).

It sees images as in its own training: its pixels, its mean and deviation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from raysurl.encoder import TrainedEncoder
from raysurl.errors import InputError
from raysurl.paths import default_place, given_path, place
from raysurl.recipe import Recipe, overridden, recipe_from
from raysurl.recipe.schema import sentence
from raysurl.recipe.sections import LABELS, Teacher
from raysurl.teachers import kinds, networks

SECTION = "teacher."


class Judged(nn.Module):
    """A network (b, 3, size, size) -> (b, dim), as encoders are."""

    def __init__(self, net: nn.Module, dim: int) -> None:
        super().__init__()
        self.net, self.dim = net, dim

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@dataclass(frozen=True)
class NamedTeacher:
    """`found`: the teacher as an encoder, with the recipe by which it is judged, and where results go; `texts`: class
    names -> (C, dim), where the recipe asks for them."""

    found: TrainedEncoder
    texts: Callable[[Sequence[str]], Tensor] | None

    def embed_names(self, names: Sequence[str] | None) -> Tensor | None:
        """Text embeddings of the classes, where zero-shot was asked for. Raises InputError where they have no names."""
        if self.texts is None:
            return None
        if not names:
            raise InputError("the protocol zeroshot needs names of the classes, and these data have none")
        return self.texts(names)


def named_teacher(given: Mapping[str, str]) -> NamedTeacher:
    """What `teacher.name=` names among the arguments of a command. Raises InputError for what cannot be had."""
    mine = {key: text for key, text in given.items() if key.startswith(SECTION)}
    settings = _settings(mine)
    recipe = recipe_from(overridden({}, {key: text for key, text in given.items() if key not in mine}))
    texts = None
    if "zeroshot" in recipe.eval.protocols:
        network, texts = _towers(settings, recipe)
    else:
        network = kinds.network_of(settings)
    recipe = _recipe_for(recipe, settings, network)
    where = place("output", recipe.output) if recipe.output else _default(settings, recipe)
    where.mkdir(parents=True, exist_ok=True)
    encoder = Judged(network.net.eval().requires_grad_(False), network.dim)
    return NamedTeacher(TrainedEncoder(recipe, encoder, where), texts)


def _settings(given: Mapping[str, str]) -> Teacher:
    try:
        settings = Teacher.model_validate(overridden({}, given)["teacher"])
    except ValidationError as error:
        raise InputError(sentence(error, Teacher, SECTION)) from None
    if settings.name == LABELS or str(settings.name).endswith(".parquet"):
        raise InputError(f"teacher.name={settings.name} is no network; only networks can be judged")
    return settings


def _towers(settings: Teacher, recipe: Recipe) -> tuple[networks.Network, Callable[[Sequence[str]], Tensor]]:
    kind, _, model = str(settings.name).partition(":")
    if kind != "open_clip":
        raise InputError(
            f"teacher.name={settings.name} has no text tower, which the protocol zeroshot needs; name a CLIP,"
            " open_clip:NAME/TAG"
        )
    file = None if settings.weights is None else given_path("teacher.weights", settings.weights)
    network, texts = networks.open_clip_towers(model, file, settings.download)
    return network, partial(prompted, texts, recipe.eval.zeroshot_prompts)


@torch.no_grad()
def prompted(texts: networks.Texts, prompts: Sequence[str], names: Sequence[str]) -> Tensor:
    """(C, dim) unit embeddings of class names: of each prompt with the name in it, the mean of unit rows."""
    rows = [
        F.normalize(texts([prompt.replace("{}", name) for prompt in prompts]).float(), dim=1).mean(0)
        for name in names
    ]
    return F.normalize(torch.stack(rows), dim=1)


def _recipe_for(recipe: Recipe, settings: Teacher, network: networks.Network) -> Recipe:
    seen = {
        "size": settings.size or network.size,
        "mean": settings.mean or network.mean,
        "std": settings.std or network.std,
    }
    margin = network.margin if recipe.eval.margin is None else recipe.eval.margin
    # an untrained teacher is no baseline of anybody's; raw pixels of its size would be all of the time
    judged = recipe.eval.model_copy(update={"margin": margin, "baselines": False})
    return recipe.model_copy(update={"views": recipe.views.model_copy(update=seen), "eval": judged})


def _default(settings: Teacher, recipe: Recipe) -> Path:
    name = "-".join(filter(None, re.split(r"\W+", f"{settings.name} {recipe.data.name}".lower())))
    return default_place("evaluations") / name
