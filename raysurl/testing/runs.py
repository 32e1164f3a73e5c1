"""What holds for every method from step to step: memory, runs of a seed, resumed runs, several processes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysurl import distributed
from raysurl.errors import first_line
from raysurl.memory.base import Memory
from raysurl.memory.link import gather_push
from raysurl.recipe import Recipe
from raysurl.testing.ranks import on_ranks
from raysurl.testing.shared import disturb
from raysurl.testing.small import fail, logs, named, output_of, require, start, started, steps
from raysurl.train import trainer
from raysurl.train.saving import save


def check_memory(recipe: Recipe) -> None:
    """Memory is a function of its seed and of what was pushed; mirrors, answers and a stored state agree with it."""
    kind, check = recipe.method.remembers(), "memory keeps what is asked of it"
    if kind is None:
        return
    is_one = isinstance(kind, type) and issubclass(kind, Memory)
    require(is_one, check, "Config.remembers() is not a subclass of raysurl.memory.base.Memory")
    with started(recipe) as run:
        count, seed = len(run.loader.source.readable), recipe.stream_seed
        batch, output = output_of(run)
        made = [recipe.method.memory(count, seed) for _ in range(2)]
        memory, twin = made
        require(
            type(memory) is kind,
            check,
            f"Config.memory() makes a {type(memory).__name__}, not {kind.__name__}",
        )
        _same(memory.snapshot(), twin.snapshot(), check, "two of the same seed differ")
        mirror = memory.mirror(torch.device("cpu"))
        if output.push is not None:
            keys, index = gather_push([output])
            for held in (memory, mirror):
                held.push(keys.clone(), index.clone())
        _same(memory.snapshot(), mirror.snapshot(), check, "its mirror differs after the same push")
        if kind.per_sample:
            rows = memory.snapshot().get("features", torch.empty(0))
            require(
                len(rows) == count, check, f"per_sample, and its features have {len(rows)} rows, not {count}"
            )
        twin.load_state_dict(memory.state_dict())
        _same(memory.snapshot(), twin.snapshot(), check, "one that was given its state_dict() differs")
        if kind.answers:
            told = [held.answer(batch.index, 1) for held in (memory, memory, twin)]
            for answer in told:
                _same(told[0], answer, check, "it answers the same question otherwise; draw by (seed, step)")
            wrong = [name for name, value in told[0].items() if len(value) != len(batch.index)]
            require(
                not wrong,
                check,
                f"its answer {wrong[:1]} has not one row for each of {len(batch.index)} samples",
            )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], check: str, sentence: str) -> None:
    equal = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    require(equal, check, sentence)


# -------------------------------------------------------------------- runs


def check_repeats_and_resumes(recipe: Recipe) -> None:
    """Runs of one seed are equal, one that is resumed in the middle of an epoch among them, to the last bit."""
    with started(recipe) as whole, tempfile.TemporaryDirectory() as folder:
        expected = logs(whole, 5)
        for values in expected:
            wrong = [name for name, value in values.items() if not math.isfinite(value)]
            require(
                not wrong, "what is logged is finite", f"{', '.join(wrong)} is not in the first five steps"
            )
        disturb()
        part = start(recipe, Path(folder))
        require(
            steps(part, 3) == [values["loss"] for values in expected[:3]],
            "two runs of one seed are equal",
            "their losses differ; it draws from a generator that the process shares (use raysurl.streams), or keeps"
            " something outside of itself",
        )
        save(part)
        part.writer.wait()
        resumed = start(recipe, Path(folder))
        check = "a run that is resumed goes on as if it had not been interrupted"
        same = resumed.step == 3 and steps(resumed, 2) == [values["loss"] for values in expected[3:]]
        require(same, check, "its losses differ; what it keeps between steps is not all in its state_dict()")
        ours, theirs = resumed.method.state_dict(), whole.method.state_dict()
        wrong = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
        require(not wrong, check, f"{', '.join(wrong[:3])} differs")


def check_seeds(recipe: Recipe) -> None:
    """Another seed gives another loss, from the first step on."""
    losses = []
    for seed in (recipe.seed, recipe.seed + 1):
        with started(recipe.model_copy(update={"seed": seed})) as run:
            losses.append(float(output_of(run)[1].loss.detach()))
    require(losses[0] != losses[1], "the seed decides", "two seeds have the same loss in the first step")


def check_ranks(subjects: list[Any], recipe_of: Callable[[str], Recipe]) -> None:
    """One step on two processes is one step on one: loss, change of parameters, statistics and memory."""
    alone, ranks = first_steps(0, subjects, recipe_of, 1), on_ranks(first_steps, 2, subjects, recipe_of, 2)
    for key in alone:
        compare_ranks(alone[key], [rank[key] for rank in ranks])


def first_steps(
    rank: int, subjects: list[Any], recipe_of: Callable[[str], Recipe], world_size: int
) -> dict[str, dict[str, Any]]:
    """Loss, parameter change, running statistics and memory after the first step of each method."""
    results = {}
    for subject in subjects:
        with named("method", subject) as name:
            results[name] = _first_step(recipe_of(name), rank, world_size)
    return results


def _first_step(recipe: Recipe, rank: int, world_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = start(recipe, Path(folder), rank=rank, world_size=world_size)
        before = {k: v.clone() for k, v in run.method.named_parameters()}
        ((micro_batches, _),) = run.loader.steps(0, 1)
        said = trainer.train_step(run, micro_batches)
        kept = run.memory.snapshot(slice(None)) if run.memory else {}
        return {
            "loss": distributed.mean(said["loss"]),
            "change": {k: v.detach() - before[k].detach() for k, v in run.method.named_parameters()},
            "rounding": {k: torch.finfo(v.dtype).eps * v.detach().norm() for k, v in before.items()},
            "buffers": {k: v.clone() for k, v in run.method.named_buffers()},
            "memory": {k: v.clone() for k, v in kept.items()},
        }


def compare_ranks(alone: Mapping[str, Any], ranks: list[Any]) -> None:
    check = "a step on two processes is a step on one"
    scale = max(float(change.abs().max()) for change in alone["change"].values())
    require(scale > 0, check, "the step changes no parameter")
    for result in ranks:
        _close(
            result["loss"], alone["loss"], check, "the loss", rtol=1e-5, atol=5e-7
        )  # near 0: its terms' rounding
        for key, change in alone["change"].items():
            error = (result["change"][key] - change).norm()
            # sums in another order, of which attention's are the longest; a change is a difference of fp32 parameters
            allowed = 3e-5 * change.norm() + 3e-6 * scale * change.numel() ** 0.5
            require(
                bool(error <= allowed + alone["rounding"][key]),
                check,
                f"the change of {key} differs by {error:.2g}",
            )
        for part in ("memory", "buffers"):
            for key, value in alone[part].items():
                _close(result[part][key], value, check, f"{key} of its {part}", rtol=1e-4, atol=1e-5)
    for key, change in ranks[0]["change"].items():
        require(
            torch.equal(change, ranks[1]["change"][key]), check, f"the two processes change {key} otherwise"
        )


def _close(ours: Tensor, theirs: Tensor, check: str, what: str, *, rtol: float, atol: float) -> None:
    try:
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    except AssertionError as error:
        numbers = str(error).splitlines()[-2:]
        fail(check, f"{what} differs ({'; '.join(n.strip() for n in numbers) or first_line(error)})")
