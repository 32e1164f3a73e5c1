"""What holds for every method. Each check is given the recipe of a tiny run, see raysurl.testing.small."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raysurl import build, method
from raysurl.data.names import open_samples
from raysurl.encoder import encoder_of
from raysurl.errors import InputError
from raysurl.method import Method, Output
from raysurl.nets.eager import SGD
from raysurl.nets.ema import MomentumTeacher
from raysurl.recipe import Recipe
from raysurl.testing.runs import check_memory, check_ranks, check_repeats_and_resumes, check_seeds
from raysurl.testing.small import first_batch, logs, named, output_of, recipe_for, require, started

RANKS = {"rank", "world_size", "get_rank", "get_world_size"}
OF_PROCESSES = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}  # of the environment


def check_method(
    subject: type[Method] | str, settings: Mapping[str, Any] | None = None, *, ranks: bool = False
) -> None:
    """Raises AssertionError, or InputError, for the first thing that a method does not keep.

    `subject`: a subclass of `Method`, or what `method.name` may be. `settings` of the method, best small ones; what is
    called as in the package, as dim and hidden, is small by itself. `ranks`: whether one step on two processes is
    compared with one (about 10 s); the class must then be one that other processes can import.
    """
    with named("method", subject) as name:
        check_source(method.load(name))
        recipe = recipe_for(name, method=dict(settings or {}))
        check_views(recipe)
        check_encoder_is_kept(recipe)
        check_output(recipe)
        check_gradients(recipe)
        check_memory(recipe)
        check_teachers_stay(recipe)
        check_repeats_and_resumes(recipe)
        check_seeds(recipe)
        check_learns(recipe)
    if ranks:
        check_ranks([subject], partial(recipe_for, method=dict(settings or {})))


# -------------------------------------------------------------------- what it is


def ranks_in(tree: ast.AST) -> set[str]:
    """What a piece of code asks about the processes of a run."""
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    text = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return called & RANKS | {str(value) for value in text if value in OF_PROCESSES}


def check_source(kind: type[Method]) -> None:
    """A method asks for no rank: it is code of one device, and raysurl.distributed gathers where a loss needs it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter
        return
    found = sorted(ranks_in(tree))
    require(
        not found,
        "a method sees no ranks",
        f"{kind.__name__} asks for {', '.join(found)}; use raysurl.distributed.gather_with_gradient where a loss needs"
        " the whole batch",
    )


def check_views(recipe: Recipe) -> None:
    check, views = "a method has views", recipe.method.views()
    require(bool(views), check, "its Config.views() is empty; give view name -> policy")
    require(set(recipe.view_policies()) >= set(views), check, "some of them have no policy")


def check_output(recipe: Recipe) -> None:
    """A finite scalar loss with a gradient, detached finite scalars to log, and keys of the batch for memory."""
    check = "a step gives an Output"
    with started(recipe) as run:
        batch, output = output_of(run)
        require(
            isinstance(output, Output),
            check,
            f"forward gives {_shape(output)}, not raysurl.method.Output",
        )
        loss = output.loss
        require(
            isinstance(loss, Tensor) and loss.ndim == 0, check, f"its loss is {_shape(loss)}, not one number"
        )
        require(bool(torch.isfinite(loss)), check, f"its loss is {float(loss.detach())}, not a finite number")
        require(
            loss.requires_grad, check, "its loss has no gradient; something is detached, or made without one"
        )
        for name, value in output.logs.items():
            scalar = isinstance(value, Tensor) and value.ndim == 0
            require(scalar, check, f"logs[{name!r}] is {_shape(value)}, not a tensor of one number")
            require(
                not value.requires_grad, check, f"logs[{name!r}] has a gradient; use raysurl.method.detached"
            )
            require(
                bool(torch.isfinite(value)), check, f"logs[{name!r}] is {float(value)}, not a finite number"
            )
        remembers = recipe.method.remembers() is not None
        if output.push is None:
            return
        require(
            remembers,
            check,
            "it pushes keys, and its Config.remembers() says that there is no memory for them",
        )
        keys, index = output.push.keys, output.push.index
        count = len(batch.index)
        shaped = keys.ndim == 3 and keys.shape[1] == count
        require(shaped, check, f"push.keys are {_shape(keys)}, not (views, {count}, width)")
        require(not keys.requires_grad, check, "push.keys have a gradient; detach them")
        require(torch.equal(index, batch.index), check, "push.index is not batch.index")


def _shape(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


# -------------------------------------------------------------------- what it learns


def check_gradients(recipe: Recipe) -> None:
    """Finite gradients reach all that is trained, at the beginning, in the middle or at the end, and no teacher."""
    check = "the gradient reaches every trained parameter"
    with started(recipe) as run:
        batch = first_batch(run)
        snapshot = run.memory.snapshot(slice(None)) if run.memory else {}
        norms: dict[str, float] = {}
        for step in (0, run.total_steps // 2, run.total_steps - 1):
            run.method.zero_grad()
            run.model(batch, snapshot, dataclasses.replace(run.progress, step=step)).loss.backward()
            for name, p in run.method.named_parameters():
                if p.grad is not None:
                    require(
                        bool(torch.isfinite(p.grad).all()),
                        check,
                        f"that of {name} is not finite at step {step}",
                    )
                    norms[name] = norms.get(name, 0.0) + float(p.grad.abs().sum())
        for name, p in run.method.named_parameters():
            if p.requires_grad:
                require(
                    name in norms, check, f"{name} has none; use it in the loss, or set requires_grad=False"
                )
                require(p.ndim < 2 or norms[name] > 0, check, f"that of {name} is zero everywhere")
        for module in run.method.modules():
            frozen = not isinstance(module, MomentumTeacher) or all(
                p.grad is None and not p.requires_grad for p in module.parameters()
            )
            require(frozen, "a teacher has no gradient", "that of a MomentumTeacher is not frozen")


def check_encoder_is_kept(recipe: Recipe) -> None:
    """`method.encoder` is the network that the recipe describes, so that what is kept can be loaded."""
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    made = build.method_of(recipe, num_samples=len(samples), labels=samples.labels)
    own, wanted = (
        {name: tuple(value.shape) for name, value in net.state_dict().items()}
        for net in (getattr(made, "encoder", torch.nn.Identity()), encoder_of(recipe))
    )
    require(
        own == wanted, "method.encoder is what is kept", "it is not build.encoder; set self.encoder to that"
    )


def check_learns(recipe: Recipe) -> None:
    """Twenty steps on one batch lower its loss."""
    with started(recipe) as run:
        batch, progress = first_batch(run), dataclasses.replace(run.progress, step=5)
        snapshot = {k: v.clone() for k, v in run.memory.snapshot(slice(None)).items()} if run.memory else {}
        trained = [p for p in run.method.parameters() if p.requires_grad]
        optimizer = SGD(trained, lr=0.02, momentum=0.9)
        losses = []
        for _ in range(20):
            loss = run.model(batch, snapshot, progress).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    require(
        losses[-1] < losses[0] - 0.02 * abs(losses[0]),
        "twenty steps on one batch lower its loss",
        f"it was {losses[0]:.4g} and is {losses[-1]:.4g}",
    )


def check_teachers_stay(recipe: Recipe) -> None:
    """What a frozen teacher says of a view is the same after some steps, and nothing of it is trained or stored."""
    with started(recipe) as run:
        teacher: Any = getattr(run.method, "frozen", None)
        if teacher is None or teacher.on_host:
            return
        view = next(iter(first_batch(run).views.values()))
        try:
            before = teacher.embed(view)
        except InputError:  # of one that sees no views
            return
        logs(run, 2)
        check = "a frozen teacher stays as it is"
        require(torch.equal(teacher.embed(view), before), check, "its embeddings are others after two steps")
