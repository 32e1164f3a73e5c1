"""What holds for every encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysurl import streams
from raysurl.encoder import encoder_of, load_encoder, write_encoder
from raysurl.recipe import Recipe, recipe_from
from raysurl.testing.small import logs, named, recipe_for, require, started


def check_encoder(
    subject: Callable[..., nn.Module] | str, options: Mapping[str, Any] | None = None, *, size: int = 8
) -> None:
    """Raises AssertionError, or InputError, for the first thing that an encoder does not keep.

    `subject`: a subclass of `nn.Module`, a function that makes one, or what `encoder.name` may be. `options`: its
    settings, as `encoder.options`; best small ones. `size`: pixels of the views that it sees.
    """
    with named("encoder", subject) as name:
        recipe = recipe_for("simsiam", encoder={"name": name, "options": dict(options or {})})
        recipe = recipe.model_copy(update={"views": recipe.views.model_copy(update={"size": size})})
        encoder = encoder_of(recipe)  # which looks at its output for each size of the recipe's views
        images = torch.rand(4, 3, size, size, generator=streams.torch_stream(0, "images"))
        check_vectors(encoder, images)
        check_gradients(encoder, images)
        check_initial_weights(recipe)
        check_file(recipe, encoder, images)
        check_training(recipe)


def check_vectors(encoder: nn.Module, images: Tensor) -> None:
    """In evaluation a finite vector of `dim` values for each image (b, 3, S, S), whatever else is in the batch."""
    check = "an image has one vector, whatever is beside it"
    encoder.eval()
    with torch.no_grad():
        out, alone = encoder(images), encoder(images[:1])
        require(
            torch.equal(out, encoder(images)), check, "the same images have other vectors when asked again"
        )
    wanted = (len(images), int(encoder.dim))  # type: ignore[arg-type]
    require(tuple(out.shape) == wanted, check, f"{len(images)} images give {tuple(out.shape)}, not {wanted}")
    require(bool(torch.isfinite(out).all()), check, "some of its values are not finite")
    require(torch.allclose(out[:1], alone, rtol=1e-4, atol=1e-5), check, "an image alone has another vector")
    require(bool((out[0] != out[1]).any()), check, "two images have the same vector")


def check_gradients(encoder: nn.Module, images: Tensor) -> None:
    """Finite gradients reach all that is trained."""
    check = "the gradient reaches every trained parameter"
    encoder.train()
    encoder.zero_grad()
    encoder(images).square().sum().backward()
    for name, p in encoder.named_parameters():
        if p.requires_grad:
            require(p.grad is not None, check, f"{name} has none; use it, or set requires_grad=False")
            assert p.grad is not None
            require(bool(torch.isfinite(p.grad).all()), check, f"that of {name} is not finite")
            require(p.ndim < 2 or bool(p.grad.any()), check, f"that of {name} is zero everywhere")


def check_initial_weights(recipe: Recipe) -> None:
    """They are a function of the seed."""
    one, again, other = (
        encoder_of(recipe.model_copy(update={"seed": seed})).state_dict() for seed in (0, 0, 1)
    )
    check = "the seed decides the initial weights"
    for name, value in one.items():
        require(torch.equal(value, again[name]), check, f"{name} differs between two encoders of one seed")
    differs = any(not torch.equal(value, other[name]) for name, value in one.items())
    require(differs, check, "two seeds have the same")


def check_file(recipe: Recipe, encoder: nn.Module, images: Tensor) -> None:
    """What is written of it gives the same vectors when it is loaded."""
    check = "encoder.safetensors gives the same vectors"
    encoder.eval()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_encoder(Path(folder), encoder, recipe)
        except RuntimeError as error:  # tensors that share memory
            raise AssertionError(f"{check}: it cannot be written ({str(error).splitlines()[0]})") from None
        loaded = load_encoder(str(path)).encoder.eval()
        with torch.no_grad():
            require(torch.equal(loaded(images), encoder(images)), check, "the loaded encoder gives others")


def check_training(recipe: Recipe) -> None:
    """It trains in a run, and is copied by a moving average."""
    check = "it trains"
    for name in ("simsiam", "ressl"):
        tree = recipe.model_dump(mode="json")
        method = recipe_for(name).method.model_dump(mode="json")
        with started(recipe_from({**tree, "method": method})) as run:
            before = {k: v.clone() for k, v in run.method.encoder.named_parameters() if v.requires_grad}
            for values in logs(run, 2):
                require(values["loss"] == values["loss"], check, f"with {name} its loss is not a number")
            after = dict(run.method.encoder.named_parameters())
            still = [k for k, v in before.items() if v.ndim > 1 and torch.equal(v, after[k])]
            require(not still, check, f"with {name} two steps leave {', '.join(still[:3])} as it was")
