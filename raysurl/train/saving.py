"""A run's state: into a checkpoint, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from raysurl import metrics
from raysurl.errors import InputError
from raysurl.memory.record import MemoryLostError
from raysurl.metrics import Tally
from raysurl.train import checkpoint, optim

if TYPE_CHECKING:
    from raysurl.train.trainer import Run


def save(run: Run, metric: float | None = None) -> None:
    """Write everything the run needs to go on; non-finite losses are found first."""
    run.block.flush()
    if run.memory:
        run.memory.drain()
    if run.position == run.saved or run.runtime.rank:
        return
    state = {
        "streams": run.recipe.streams,
        "step": run.step,
        "seconds": run.spent.seconds,
        "model": run.method.state_dict(),
        "optimizer": optim.state_of(run.optimizer),
        "memory": run.memory.state_dict() if run.memory else None,
        "epochs_done": run.epochs_done,
        "refreshed_at": run.refreshed_at,
        "tally": run.tally.state_dict(),
        "examined": run.examiner.state_dict(),
    }
    run.writer.write(state, run.step, metric)
    run.saved = run.position


def keep(run: Run) -> None:
    """What a run that is stopped leaves: its state, and a record that is whole. Every rank calls it."""
    if run.step > 0:
        save(run)
    run.event(f"stopped at step {run.step} of {run.total_steps}")
    run.writer.wait()
    if run.record:
        run.record.flush()


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a checkpoint's state into the run. Raises InputError when it is another recipe's, or of other streams."""
    if (begun := state.get("streams", 1)) != run.recipe.streams:
        raise InputError(
            f"the run in {run.run_dir} was begun with streams={begun}, not {run.recipe.streams}; resume it with them"
        )
    step = int(state["step"])
    try:
        run.method.load_state_dict(state["model"])
        optim.restore(run.optimizer, state["optimizer"])
        run.block.tally = Tally(**state.get("tally", {}))  # older checkpoints have none
        if "examined" in state:
            run.examiner.load_state_dict(state["examined"])
        if run.memory:
            run.memory.load_state_dict(state["memory"])
    except MemoryLostError:  # the memory actor's own trouble
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        first = checkpoint.reason(error)
        raise InputError(f"the checkpoint in {run.checkpoints} does not fit this recipe: {first}") from None
    run.step = step
    run.epochs_done = int(state.get("epochs_done", step // run.plan.steps_per_epoch))
    run.refreshed_at = int(state.get("refreshed_at", -1))
    run.saved = run.position
    run.spent.began -= state["seconds"]


def resumed(run: Run) -> str:
    """At which step, and whether with other threads than it began with."""
    said, threads = f"resumed at step {run.step} of {run.total_steps}", torch.get_num_threads()
    lines = metrics.read(run.run_dir / "metrics.jsonl") if run.record else []
    begun = next((line["threads"] for line in lines if "threads" in line), threads)
    if begun == threads:
        return said
    return (
        f"{said}; it began with {begun} threads and goes on with {threads}, which changes the last digits of sums:"
        f" scale.threads={begun} keeps them"
    )
