"""Frozen teachers: networks of torchvision, timm or open_clip, runs of ours, embeddings computed before, or labels.

A teacher is built once by the builder, in eval mode and without gradient, outside DDP, optimizer and checkpoint. What
it gives is its backbone's features, before any classifier. `teacher.view=same`: of the view that the student sees;
`plain`: of the image without augmentation, which the loader makes as the view `teacher`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from raysurl import distributed
from raysurl.encoder import load_encoder
from raysurl.errors import InputError
from raysurl.method import Batch, FrozenTeacher
from raysurl.nets.constant import Constant
from raysurl.paths import given_path
from raysurl.recipe.sections import LABELS
from raysurl.teachers import networks, table


class Settings(Protocol):
    """The `teacher` section of a recipe."""

    @property
    def name(self) -> str | None: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def view(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def mean(self) -> tuple[float, float, float] | None: ...
    @property
    def std(self) -> tuple[float, float, float] | None: ...
    @property
    def centre(self) -> bool: ...
    @property
    def download(self) -> bool: ...


class ViewFormat(Protocol):
    """How the student's views are made: their pixels, and what normalises them."""

    @property
    def size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class NetworkTeacher:
    """A network, and how the student's views become its input: normalised anew, then resized (bilinear) to `size`."""

    net: nn.Module
    dim: int
    plain: bool
    size: int
    scale: Constant  # (3, 1, 1): x·scale + offset has the teacher's mean and standard deviation
    offset: Constant
    on_host = False

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        self.net.to(x.device)  # nothing once it is there
        if x.dim() == 4:
            x = x * self.scale.on(x.device) + self.offset.on(x.device)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        out: Tensor = self.net(x)
        return out.float()

    def teach(self, batch: Batch, view: str) -> Batch:
        seen = batch.views["teacher" if self.plain else view]
        return replace(batch, views={**batch.views, "teacher": self.embed(seen)})


@dataclass(frozen=True)
class LabelTeacher:
    """`teacher.name=labels`, for supervised rows: one-hot rows of `labels` (N,), zeros where a sample has none."""

    labels: NDArray[np.int64]
    dim: int  # number of classes
    on_host = False

    @cached_property
    def _labels(self) -> Constant:
        return Constant(torch.from_numpy(self.labels))

    def embed(self, x: Tensor) -> Tensor:
        raise InputError("teacher.name=labels can see no view; name a network")

    def teach(self, batch: Batch, view: str) -> Batch:
        device = batch.index.device
        own = self._labels.on(device)[batch.index]
        rows = (own[:, None] == torch.arange(self.dim, device=device)).float()
        return replace(batch, views={**batch.views, "teacher": rows})


@dataclass(frozen=True)
class CentredTeacher:
    """`teacher.centre`: another teacher's embeddings less their mean over the global batch.

    Features behind a ReLU all point one way, so that the cosine of any two is near 1 and a loss of cosines sees little
    else. The papers' teachers keep the projection head that spreads them; a backbone alone has lost it.
    """

    teacher: FrozenTeacher

    @property
    def dim(self) -> int:
        return self.teacher.dim

    @property
    def on_host(self) -> bool:
        return self.teacher.on_host

    def embed(self, x: Tensor) -> Tensor:
        return _centred(self.teacher.embed(x))

    def teach(self, batch: Batch, view: str) -> Batch:
        batch = self.teacher.teach(batch, view)
        return replace(batch, views={**batch.views, "teacher": _centred(batch.views["teacher"])})


def _centred(rows: Tensor) -> Tensor:
    """(b, D), of as many rows on each rank."""
    return rows - distributed.mean(rows.mean(dim=0))


def open_teacher(
    settings: Settings,
    views: ViewFormat,
    num_samples: int,
    *,
    max_missing: float = 0.0,
    labels: NDArray[np.int64] | None = None,
) -> FrozenTeacher:
    """The teacher that a recipe names, with its weights. Raises InputError for one that cannot be had."""
    assert settings.name is not None
    if settings.name == LABELS:
        if labels is None or not (labels >= 0).any():
            raise InputError("teacher.name=labels: the data have no labels; name a network")
        _check_table(settings)
        if settings.centre:
            raise InputError(
                "teacher.centre is of embeddings, and teacher.name=labels has none; leave it out"
            )
        return LabelTeacher(labels, int(labels.max()) + 1)
    path = given_path("teacher.name", settings.name)
    if path.suffix == ".parquet":
        _check_table(settings)
        return table.open_table(path, num_samples, max_missing=max_missing)
    found = _loader(settings)(True)
    net = found.net.eval().requires_grad_(False)
    scale, offset = _renormalise(views, settings.mean or found.mean, settings.std or found.std)
    size = settings.size or found.size
    teacher = NetworkTeacher(net, found.dim, settings.view == "plain", size, scale, offset)
    return teacher if found.vectors else replace(teacher, dim=_probed(teacher, settings.name))


def network_of(settings: Settings) -> networks.Network:
    """The network that a recipe names, with its weights. Raises InputError for one that cannot be had."""
    return _loader(settings)(True)


def check_input(teacher: FrozenTeacher, name: str, width: int | None, size: int) -> None:
    """Raises InputError where a network does not take the samples: vectors of `width` values (None: images) of
    `size` pixels."""
    if not isinstance(teacher, NetworkTeacher):
        return
    sample = torch.zeros(1, 3, size, size) if width is None else torch.zeros(1, width)
    try:
        teacher.embed(sample)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        data = f"images of {size} pixels" if width is None else f"vectors of {width} values"
        raise InputError(f"teacher.name={name} does not take the data, {data}: {reason}") from None


def width(settings: Settings) -> int:
    """Values of an embedding of the teacher, for which no weights of a named model are needed."""
    assert settings.name is not None
    if settings.name == LABELS:
        raise InputError("teacher.name=labels has no width before the data are read; name a network")
    path = given_path("teacher.name", settings.name)
    if path.suffix == ".parquet":
        return table.width_of_table(path)
    return _loader(settings)(False).dim


def _check_table(settings: Settings) -> None:
    unused = [key for key in ("weights", "size", "mean", "std") if getattr(settings, key) is not None]
    if unused:
        raise InputError(
            f"teacher.{unused[0]} is of a network, and teacher.name={settings.name} holds embeddings"
        )
    if settings.view != "plain":
        raise InputError(
            f"teacher.name={settings.name} holds embeddings of images without augmentation; use teacher.view=plain"
        )


def _loader(settings: Settings) -> Callable[[bool], networks.Network]:
    """A function (with its weights?) -> the network that `teacher.name` names."""
    name, weights = settings.name or "", settings.weights
    file = None if weights is None else given_path("teacher.weights", weights)
    kind, separator, model = name.partition(":")
    if separator and kind in networks.LIBRARIES:
        return lambda loaded: networks.LIBRARIES[kind](model, file, settings.download, loaded)
    path = given_path("teacher.name", name)
    if path.exists():
        if file is not None:
            raise InputError(
                f"teacher.weights is of a named model, and teacher.name={name} has its own weights"
            )
        return lambda loaded: _own(path)
    if path.suffix or "/" in name:
        raise InputError(
            f"teacher.name={name} does not exist; name a run directory or an encoder.safetensors"
        )
    return lambda loaded: networks.torchvision_model(name, file, settings.download, loaded)


def _own(path: Path) -> networks.Network:
    """The encoder of one of our runs, fed as it was in training."""
    try:
        found = load_encoder(str(path))
    except InputError as error:
        raise InputError(f"teacher.name={path} cannot be the teacher: {error}") from None
    v, dim = found.recipe.views, int(found.encoder.dim)  # type: ignore[arg-type]
    takes_vectors = found.recipe.encoder.name == "mlp"
    return networks.Network(found.encoder, dim, v.size, v.mean, v.std, vectors=takes_vectors)


def _renormalise(views: ViewFormat, mean: Sequence[float], std: Sequence[float]) -> tuple[Constant, Constant]:
    """(x − m_s)/s_s of the student -> (x − m_t)/s_t of the teacher, as a scale and an offset."""
    mine, theirs = (torch.tensor(v).view(3, 1, 1) for v in (views.mean, mean))
    mine_std, theirs_std = (torch.tensor(v).view(3, 1, 1) for v in (views.std, std))
    return Constant(mine_std / theirs_std), Constant((mine - theirs) / theirs_std)


def _probed(teacher: NetworkTeacher, name: str) -> int:
    """Width of what the network gives for an image. Raises InputError where it takes none of this size."""
    image = torch.zeros(1, 3, teacher.size, teacher.size)
    try:
        out = teacher.embed(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"teacher.name={name} takes no images of {teacher.size} pixels ({first}); set teacher.size"
        ) from None
    if not out.isfinite().all():
        raise InputError(f"teacher.name={name} gives values that are not finite; its weights are damaged")
    if out.dim() != 2:
        raise InputError(
            f"teacher.name={name} gives {tuple(out.shape)} for an image and not one embedding; name another model"
        )
    return out.shape[1]
