"""From a recipe to the objects it describes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from raysurl import teachers
from raysurl.ema import Teacher
from raysurl.encoders import MLP, build_encoder, check_size
from raysurl.errors import InputError
from raysurl.method import Build, FrozenTeacher, Method
from raysurl.norm import convert
from raysurl.recipe import Recipe

Labels = NDArray[np.int64] | None


def encoder_of(recipe: Recipe) -> nn.Module:
    """The recipe's encoder with its seeded initial weights: a fresh call gives the untrained baseline.

    Raises InputError for an unknown name, and for views that are too small for the network.
    """
    torch.manual_seed(recipe.seed)
    if recipe.encoder.name == "mlp":
        return MLP(
            recipe.encoder.inputs or 3 * recipe.views.size**2, recipe.encoder.widths, recipe.encoder.dropout
        )
    e, sizes = (
        recipe.encoder,
        [
            policy.size or recipe.views.size
            for view, policy in recipe.view_policies().items()
            if view != "teacher"
        ],
    )
    check_size(e.name, min([recipe.views.size, *sizes]), small_stem=e.small_stem)
    return build_encoder(
        e.name,
        small_stem=e.small_stem,
        maxpool=e.maxpool,
        norm=recipe.norm,
        with_sobel=e.sobel,
        widths=e.channels,
        zero_init_residual=e.zero_init_residual,
    )


def fitted(recipe: Recipe, width: int | None) -> Recipe:
    """The recipe for samples that are vectors of `width` values (None: images): the encoder's input is as wide.

    Raises InputError for vectors where the encoder sees images, or where it is made for others.
    """
    e = recipe.encoder
    if width is None:
        return recipe
    if e.name != "mlp":
        raise InputError(f"encoder.name={e.name} sees images, and the data are vectors; use encoder.name=mlp")
    if e.inputs not in (None, width):
        raise InputError(
            f"encoder.inputs={e.inputs} and the data have {width} values per sample; leave it out"
        )
    return recipe.model_copy(update={"encoder": e.model_copy(update={"inputs": width})})


def method_of(recipe: Recipe, *, num_samples: int, labels: Labels = None) -> Method:
    """The method with its encoder, heads and teacher, initial weights a function of the seed alone.

    `labels` (N,) are looked at by `teacher.name=labels` alone.
    """
    encoder, teacher = encoder_of(recipe), teacher_of(recipe, num_samples, labels)
    if teacher and recipe.teacher.centre:
        teacher = teachers.CentredTeacher(teacher)
    build = Build(
        encoder=encoder,
        dim=int(encoder.dim),  # type: ignore[arg-type]
        make_norm=partial(_vector_norm, recipe.norm),
        shuffle=recipe.norm == "shuffle",
        num_samples=num_samples,
        seed=recipe.seed,
        teacher=teacher,
    )
    return recipe.method_class()(recipe.method_config(), build)


def teacher_of(recipe: Recipe, num_samples: int, labels: Labels = None) -> FrozenTeacher | None:
    """The recipe's frozen teacher, with its weights; None where it names none."""
    if not recipe.teacher.name:
        return None
    return teachers.open_teacher(
        recipe.teacher, recipe.views, num_samples, max_missing=recipe.data.max_unreadable, labels=labels
    )


def _vector_norm(kind: str, width: int) -> nn.Module:
    return convert(nn.BatchNorm1d(width), kind)


def prepare(method: Method, recipe: Recipe, device: torch.device) -> Method:
    """Move to the device, set the memory format, compile the networks where asked."""
    method.to(device)
    if recipe.train.channels_last:
        method.to(memory_format=torch.channels_last)
    if recipe.train.compile:
        method.encoder.compile()
        for module in method.modules():
            if isinstance(module, Teacher):
                module.net.compile()
    return method


def initialise_from(method: Method, path: Path) -> None:
    """Load encoder weights only, from a run directory or an `encoder.safetensors`. InputError if they do not fit."""
    method.encoder.load_state_dict(encoder_weights(path, method.encoder))
    for module in method.modules():
        if isinstance(module, Teacher):  # the teacher starts as an exact copy of the student
            module.net.get_submodule("0").load_state_dict(method.encoder.state_dict())


def encoder_weights(path: Path, encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of an encoder file, checked against the names and shapes of `encoder`."""
    file = path / "encoder.safetensors" if path.is_dir() else path
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        raise InputError(f"{file} is not a readable encoder.safetensors file or run directory") from None
    wanted = encoder.state_dict()
    for name in sorted(set(wanted) | set(tensors)):
        have, want = tensors.get(name), wanted.get(name)
        if have is None or want is None or have.shape != want.shape:
            raise InputError(
                f"{file} does not fit the recipe's encoder: {name} is {_shape(have)} in the file and {_shape(want)}"
                " in the recipe; set encoder.name and encoder.small_stem as they were in training"
            )
    return tensors


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))
