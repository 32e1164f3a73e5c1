"""From a recipe to the objects it describes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import method as methods
from raysurl import streams, teachers
from raysurl.allocator import keep_freed_memory
from raysurl.encoder import check_width, encoder_of
from raysurl.method import Build, FrozenTeacher, Method
from raysurl.nets.drawing import drawn_from
from raysurl.nets.ema import MomentumTeacher
from raysurl.nets.norm import convert
from raysurl.recipe import Recipe

Labels = NDArray[np.int64] | None


def resolve(recipe: Recipe, width: int | None) -> Recipe:
    """The recipe with what follows from the data and the teacher it names, for samples that are vectors of `width`
    values (None: images).

    Raises InputError for a teacher that cannot be had, data without what the method needs of them, and vectors where
    the encoder sees images, or is made for others.
    """
    data, e = recipe.data, recipe.encoder
    method = recipe.method.for_data(data.name, data.path, data.limit)
    if recipe.teacher.name:
        method = method.for_teacher(partial(teachers.width, recipe.teacher))
    recipe = recipe.model_copy(update={"method": method})
    if width is None:
        return recipe
    check_width(recipe, width)
    return recipe.model_copy(update={"encoder": e.model_copy(update={"inputs": width})})


def method_of(recipe: Recipe, *, num_samples: int, labels: Labels = None) -> Method:
    """The method with its encoder, heads and teacher, initial weights a function of the seed alone.

    `labels` (N,) are looked at by `teacher.name=labels` alone.
    """
    draws = streams.torch_stream(recipe.stream_seed, "weights")
    encoder, teacher = encoder_of(recipe, draws), teacher_of(recipe, num_samples, labels)
    if teacher and recipe.teacher.centre:
        teacher = teachers.CentredTeacher(teacher)
    build = Build(
        encoder=encoder,
        dim=int(encoder.dim),  # type: ignore[arg-type]
        make_norm=partial(_vector_norm, recipe.norm),
        shuffle=recipe.norm == "shuffle",
        num_samples=num_samples,
        batch_size=recipe.train.batch_size,
        seed=recipe.stream_seed,
        teacher=teacher,
    )
    with drawn_from(draws):
        return methods.load(recipe.method.name)(recipe.method, build)


def teacher_of(recipe: Recipe, num_samples: int, labels: Labels = None) -> FrozenTeacher | None:
    """The recipe's frozen teacher, with its weights; None where it names none."""
    if not recipe.teacher.name:
        return None
    return teachers.open_teacher(
        recipe.teacher, recipe.views, num_samples, max_missing=recipe.data.max_unreadable, labels=labels
    )


def _vector_norm(kind: str, width: int) -> nn.Module:
    return convert(nn.BatchNorm1d(width), kind)


def tune(device: torch.device) -> list[str]:
    """Set what torch leaves open, for the whole process; sentences for the log.

    On a CPU freed memory stays with the process. On a GPU matrix products stay in full fp32: losses and views count on
    it, and networks are in bf16 under train.precision.
    """
    if device.type != "cuda":
        keep_freed_memory()
        return []
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    return ["cudnn chooses algorithms by trial; fp32 convolutions may use TF32, fp32 matrix products do not"]


def advise(recipe: Recipe, device: torch.device) -> list[str]:
    """Sentences for the log on what would be faster here; it would change digits, so that it is not done unasked."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    if known.get("amx_bf16") and recipe.train.precision == "auto" and recipe.encoder.name != "mlp":
        return ["this processor multiplies in bf16 (AMX): train.precision=bf16 may be up to twice as fast"]
    return []


def prepare(method: Method, recipe: Recipe, device: torch.device) -> Method:
    """Move to the device, set the memory format, compile the networks where asked."""
    method.to(device)
    if recipe.channels_last(device):
        method.to(memory_format=torch.channels_last)
    if recipe.train.compile:
        method.encoder.compile()
        for module in method.modules():
            if isinstance(module, MomentumTeacher):
                module.net.compile()
    return method


def initialise(method: Method, weights: Mapping[str, Tensor]) -> None:
    """Begin with these weights of the encoder (init_from=)."""
    method.encoder.load_state_dict(weights)
    for module in method.modules():
        if isinstance(module, MomentumTeacher):  # the teacher starts as an exact copy of the student
            module.net.get_submodule("0").load_state_dict(method.encoder.state_dict())
