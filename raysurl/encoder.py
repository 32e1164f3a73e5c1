"""The encoder of a recipe: its untrained form, and `encoder.safetensors`, what is kept of a run.

The file holds the backbone alone. Its metadata are JSON by key: the recipe's sections, and the range of pixels, that
say how to feed it, and under `about` what it is and where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from raysurl import __version__, plain, plugins, streams
from raysurl.data import manifest
from raysurl.data.depth import Depth
from raysurl.embed import plain_policy
from raysurl.errors import InputError
from raysurl.nets.counting import flops
from raysurl.nets.drawing import drawn_from
from raysurl.nets.encoders import MLP, build_encoder, check_size
from raysurl.nets.timm_models import PREFIX, normalisation, patch_layers
from raysurl.nets.weights import of_library, read_tensors
from raysurl.paths import given_path, whole
from raysurl.recipe import Recipe, read_stored, recipe_of_trained

NAME = "encoder.safetensors"
Pixels = tuple[float, float, float]
IMAGENET: tuple[Pixels, Pixels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision's weights
FED = ("encoder", "views", "eval", "data", "plugins")  # the sections that say how an encoder is fed


@dataclass(frozen=True)
class TrainedEncoder:
    recipe: Recipe
    encoder: nn.Module
    where: Path  # the run directory, or the folder of the encoder file
    depth: Depth | None = None  # the range of pixels wider than a byte that it was trained with


def encoder_of(recipe: Recipe, draws: torch.Generator | None = None) -> nn.Module:
    """The recipe's encoder with its seeded initial weights: a fresh call gives the untrained baseline.

    `draws`: where the weights come from, by default the beginning of their stream. Raises InputError for an unknown
    name, and for views that are too small for the network.
    """
    with drawn_from(draws or streams.torch_stream(recipe.stream_seed, "weights")):
        return _encoder(recipe)


def _encoder(recipe: Recipe) -> nn.Module:
    e, size = recipe.encoder, recipe.views.size
    if e.name == "mlp":
        return MLP(e.inputs or 3 * size**2, e.widths, e.dropout)
    policies = recipe.view_policies().items()
    seen = [policy.size or size for view, policy in policies if view != "teacher"]
    check_size(e.name, min([size, *seen]), small_stem=e.small_stem)
    encoder = build_encoder(
        e.name,
        small_stem=e.small_stem,
        maxpool=e.maxpool,
        norm=recipe.norm,
        with_sobel=e.sobel,
        widths=e.channels,
        zero_init_residual=e.zero_init_residual,
        drop_path=e.drop_path,
        options=e.options,
        sizes=[size, *seen],
    )
    _freeze_patches(recipe, encoder)
    return encoder


def _freeze_patches(recipe: Recipe, encoder: nn.Module) -> None:
    """The layer that makes patches into tokens stays as it is, where the recipe or the method wants that (MoCo v3)."""
    chosen = recipe.encoder.freeze_patch_embed
    layers = patch_layers(encoder) if chosen or (chosen is None and recipe.method.freezes_patches) else []
    if chosen and not layers:
        raise InputError(
            f"encoder.freeze_patch_embed=true is of networks that cut images into patches, and encoder.name="
            f"{recipe.encoder.name} does not; leave it out"
        )
    for layer in layers:
        layer.requires_grad_(False)


def counted(recipe: Recipe, encoder: nn.Module) -> str:
    """Parameters and work of an encoder (on a CPU), one sentence for the log."""
    e, size = recipe.encoder, recipe.views.size
    view = torch.zeros(1, e.inputs or 3 * size**2) if e.name == "mlp" else torch.zeros(1, 3, size, size)
    every = sum(p.numel() for p in encoder.parameters())
    fixed = sum(p.numel() for p in encoder.parameters() if not p.requires_grad)
    held = f", {fixed:,} of them frozen" if fixed else ""
    seen = f"{view.shape[1]} values" if e.name == "mlp" else f"{size} pixels"
    return (
        f"encoder {e.name}{' and its pair for edges' if e.sobel else ''}: {every:,} parameters{held}, {encoder.dim}"
        f" features, {flops(encoder, view) / 1e9:.3g} GFLOPs for a view of {seen} (a multiplication and an addition"
        " are two)"
    )


def check_width(recipe: Recipe, width: int | None) -> None:
    """Raises InputError where samples, vectors of `width` values (None: images), are none that the encoder sees."""
    e = recipe.encoder
    if width is not None and e.name != "mlp":
        raise InputError(f"encoder.name={e.name} sees images, and the data are vectors; use encoder.name=mlp")
    if width is not None and e.inputs not in (None, width):
        raise InputError(
            f"encoder.inputs={e.inputs} and the data have {width} values per sample; leave it out"
        )


def write_encoder(
    run_dir: Path,
    encoder: nn.Module,
    recipe: Recipe,
    depth: Depth | None = None,
    *,
    commit: str | None = None,
) -> Path:
    """Parameter names as torchvision gives them. `depth`: the range of the training data's wide pixels. `commit`: of
    the program that trained it."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    stored = {
        "encoder": recipe.encoder.model_dump_json(),
        "views": recipe.views.model_dump_json(),
        "eval": recipe.eval.model_dump_json(include={"margin"}),
        "depth": json.dumps(depth and depth.tree()),
        "data": recipe.data.model_dump_json(include={"flatten"}),
        "about": json.dumps(described(recipe, encoder, depth) | origin(recipe, commit)),
    }
    if pins := plugins.pins_of(recipe.encoder.name, recipe.plugins or {}):
        stored["plugins"] = json.dumps(pins)
    with whole(run_dir / NAME) as partial:
        save_file(tensors, partial, metadata=stored)
    return run_dir / NAME


def described(recipe: Recipe, encoder: nn.Module, depth: Depth | None) -> dict[str, Any]:
    """What a person or a program needs to know to use an encoder without this package."""
    e = recipe.encoder
    set_here = e.model_dump(mode="json", exclude_defaults=True) | {"name": e.name}
    return {
        "encoder": set_here,
        "dim": int(encoder.dim),  # type: ignore[arg-type]
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "preprocessing": preprocessing(recipe, depth),
    }


def origin(recipe: Recipe, commit: str | None) -> dict[str, Any]:
    """Which training an encoder comes from. Of paths, which are of one machine, the last part alone is said."""
    train = recipe.train.model_dump(mode="json", include={"epochs", "rounds", "batch_size", "optimizer"})
    return {
        "program": "raysurl",
        "version": __version__,
        "commit": commit,
        "recipe": recipe.recipe
        and (Path(recipe.recipe).name if Path(recipe.recipe).is_file() else recipe.recipe),
        "method": recipe.method.model_dump(mode="json"),
        "data": {"name": recipe.data.name, "folder": recipe.data.path and Path(recipe.data.path).name},
        "train": train,
        "seed": recipe.seed,
    }


def input_shape(recipe: Recipe) -> tuple[int, ...]:
    """Of one sample as the encoder sees it: (3, S, S), or (D,) of a vector."""
    e, size = recipe.encoder, recipe.views.size
    return (e.inputs,) if e.name == "mlp" and e.inputs else (3, size, size)


def preprocessing(recipe: Recipe, depth: Depth | None) -> dict[str, Any]:
    """How a sample becomes what the encoder sees, in the order of the keys. Sizes are pixels.

    Images: the shorter side is resized to `resize` (antialiased), the centre of `crop` pixels is taken, values in
    [0, 1] have `mean` taken off and are divided by `std`. Vectors are taken as they are.
    """
    shape = input_shape(recipe)
    if len(shape) == 1:
        return {"input": "vectors", "shape": shape, "of_images": recipe.data.flatten}
    policy, size = plain_policy(recipe), recipe.views.size
    return {
        "input": "images",
        "shape": shape,
        "colour": "RGB",
        "pixel_range": depth and depth.tree(),  # of pixels wider than a byte
        "resize": round(policy.margin * size),
        "interpolation": policy.interpolation,
        "crop": size,
        "mean": recipe.views.mean,
        "std": recipe.views.std,
    }


def load_encoder(run: str, overrides: Mapping[str, str] | None = None) -> TrainedEncoder:
    """The encoder of a run directory or an encoder file, its recipe changed by `overrides` as they were typed.

    Raises InputError if the run has no encoder yet, or the weights do not fit.
    """
    path = given_path("run", run).absolute()
    stored = path / "recipe.yaml"
    if stored.is_file():
        tree = read_stored(path)
    elif path.is_file():
        tree = _described(path)
    else:
        raise InputError(f"run={path} is neither a run directory (with recipe.yaml) nor an {NAME}")
    if path.is_dir() and not (path / NAME).is_file():
        raise InputError(f"run={path} has no {NAME} yet; finish it with resume=true output={path}")
    recipe = recipe_of_trained(tree, overrides or {})
    encoder = encoder_of(recipe)
    encoder.load_state_dict(read_weights(path, encoder))
    return TrainedEncoder(recipe, encoder, path if path.is_dir() else path.parent, _depth(path))


def named_encoder(given: Mapping[str, str]) -> TrainedEncoder:
    """The encoder that `run=` names among the arguments of a command, its recipe changed by the others."""
    if not given.get("run"):
        raise InputError("name what to use: run=DIR of a finished run, or run=FILE of an encoder.safetensors")
    return load_encoder(given["run"], {key: text for key, text in given.items() if key != "run"})


def initial_weights(init_from: str, encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a recipe's `init_from` names, for its encoder: of a run, of an encoder file, or of a file with
    timm's or torchvision's names, whose classifier is left out."""
    path = given_path("init_from", init_from)
    if path.is_dir() or not path.exists():
        return read_weights(path, encoder)
    tensors = of_library(read_tensors(path, "init_from"), encoder)
    return _checked(path, tensors, encoder)


def published_pixels(recipe: Recipe) -> tuple[Pixels, Pixels] | None:
    """Mean and standard deviation of the pixels that published weights of the recipe's encoder were trained on, where
    `init_from` names a file of its library; None where there are none, or the file is of a run of ours."""
    path = given_path("init_from", recipe.init_from) if recipe.init_from else None
    if path is None or not path.is_file() or (path.suffix == ".safetensors" and _described(path)):
        return None
    name = recipe.encoder.name
    return normalisation(name) if name.startswith(PREFIX) else IMAGENET


def read_weights(path: Path, encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a run's encoder or an encoder file, checked against the names and shapes of `encoder`."""
    file = path / NAME if path.is_dir() else path
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        raise InputError(f"{file} is not a readable {NAME} file or run directory") from None
    return _checked(file, tensors, encoder)


def _checked(file: Path, tensors: dict[str, torch.Tensor], encoder: nn.Module) -> dict[str, torch.Tensor]:
    wanted = encoder.state_dict()
    for name in sorted(set(wanted) | set(tensors)):
        have, want = tensors.get(name), wanted.get(name)
        if have is None or want is None or have.shape != want.shape:
            raise InputError(
                f"{file} does not fit the recipe's encoder: {name} is {_shape(have)} in the file and {_shape(want)}"
                " in the recipe; set encoder.name and encoder.small_stem as they were in training"
            )
    return tensors


def stored_about(file: Path) -> dict[str, Any]:
    """What an encoder file says of where it comes from; empty for one of an earlier version of this program."""
    try:
        with safe_open(file, "pt") as opened:
            said = (opened.metadata() or {}).get("about", "{}")
        return plain.mapping(said)
    except (OSError, SafetensorError, ValueError):
        raise InputError(f"{file} holds no description that can be read") from None


def _described(path: Path) -> dict[str, Any]:
    """What an encoder file says of itself: its network and how its images are prepared."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tree = {key: plain.mapping(metadata[key]) for key in FED if key in metadata}
    except (OSError, SafetensorError, ValueError):
        raise InputError(f"run={path} is not a readable {NAME} file") from None
    tree.get("views", {}).pop("policies", None)
    return tree


def _depth(path: Path) -> Depth | None:
    """The range of wide pixels that an encoder file names, or that the manifest of a run without such a name does."""
    file = path / NAME if path.is_dir() else path
    try:
        with safe_open(file, "pt") as opened:
            said = (opened.metadata() or {}).get("depth")
        if said is None:  # of an earlier version of this program
            return manifest.depth_of(path / "manifest.parquet") if path.is_dir() else None
        return Depth.of_tree(plain.parsed(said))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise InputError(f"{file} names no range of pixels that can be read") from None


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))
