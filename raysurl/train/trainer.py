"""The training loop: rare work in blocks around one short fenced step.

Read it from `train`: start or restore, then per epoch the steps and what follows them, then finish.
"""

from __future__ import annotations

import signal
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raysurl import build, distributed, stopping
from raysurl.data.grouping import mixing
from raysurl.data.source import Source
from raysurl.embed import embed
from raysurl.encoder import counted, initial_weights
from raysurl.errors import DivergedError, storage_error, unwritable
from raysurl.evaluate.evaluator import Evaluator, labels_to_learn
from raysurl.evaluate.unfinished import Unfinished
from raysurl.memory.link import MemoryLink, indices_of, link
from raysurl.method import Method, Progress
from raysurl.metrics import MetricsWriter, NonFiniteError, StepBlock, Tally
from raysurl.nets import dropping
from raysurl.recipe import Recipe
from raysurl.report import pictures
from raysurl.runtime import Runtime, threads_of
from raysurl.sampler import Plan
from raysurl.train import checkpoint, optim, run_directory, writers
from raysurl.train.device_views import DeviceViews, device_views
from raysurl.train.examination import Examiner, examine, stop_if_unhealthy
from raysurl.train.finishing import finish, trained
from raysurl.train.loading import Loaded, Loader, plan_of
from raysurl.train.saving import keep, restore, resumed, save
from raysurl.train.step import RecordedStep, Step, step_of
from raysurl.views.augmenter import Augment


@dataclass
class Run:
    """Everything the loop works on; built by `start`."""

    recipe: Recipe
    runtime: Runtime
    run_dir: Path
    plan: Plan
    loader: Loader
    method: Method
    model: nn.Module  # the method, under DDP where there are several ranks
    optimizer: torch.optim.Optimizer
    one_step: Step | RecordedStep
    memory: MemoryLink | None
    writer: checkpoint.Writer
    evaluator: Evaluator
    record: MetricsWriter | None  # metrics.jsonl, rank 0 only
    block: StepBlock
    base_lr: float
    dropouts: list[dropping.Dropout]
    step: int = 0  # optimizer steps done
    epochs_done: int = 0  # with what follows them
    refreshed_at: int = -1  # the step before which memory was rebuilt
    saved: tuple[int, ...] = ()  # the `position` of the latest checkpoint
    spent: run_directory.Spent = field(default_factory=run_directory.Spent)
    examiner: Examiner = field(default_factory=Examiner)  # of rank 0

    @property
    def total_steps(self) -> int:
        return self.recipe.total_epochs * self.plan.steps_per_epoch

    @property
    def progress(self) -> Progress:
        recipe, per_epoch = self.recipe, self.plan.steps_per_epoch
        return Progress(self.step, self.total_steps, per_epoch, recipe.stream_seed, recipe.train.rounds)

    @property
    def position(self) -> tuple[int, ...]:
        return self.step, self.epochs_done, self.refreshed_at

    @property
    def tally(self) -> Tally:
        return self.block.tally

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def event(self, text: str, **values: int) -> None:
        if self.record:
            self.record.event(self.step, text, **values)

    def close(self) -> None:
        if self.record:
            self.record.close()


def train(
    recipe: Recipe, runtime: Runtime, source: Source, eval_source: Source | None, run_dir: Path
) -> None:
    """Train, evaluate, write the run directory. Every rank calls it. Raises RunError, or StoppedError after saving."""
    try:
        with closing(start(recipe, runtime, source, eval_source, run_dir)) as run:
            try:
                with stopping.saving(partial(keep, run)):
                    train_epochs(run)
            except NonFiniteError as error:
                index = run.plan.global_batch(error.step)
                raise DivergedError(error.explain(index, run.saved[0] if run.saved else 0)) from None
            run.writer.wait()
            finish(run)
    except (OSError, SafetensorError) as error:
        raise storage_error(error, run_dir) or unwritable(run_dir) or error from None


def train_epochs(run: Run) -> None:
    """From where the run stands to its end."""
    for epoch in range(run.epochs_done, run.recipe.total_epochs):
        if run.step < (epoch + 1) * run.plan.steps_per_epoch:  # else only what follows the epoch is left
            with run.spent.epoch():
                refresh_memory(run)
                train_epoch(run)
        after_epoch(run, epochs_done=epoch + 1)
        stop_if_asked(run)


def start(recipe: Recipe, runtime: Runtime, source: Source, eval_source: Source | None, run_dir: Path) -> Run:
    """Build the run and restore the newest checkpoint, if the run directory has one."""
    torch.set_num_threads(threads_of(recipe.scale.threads, runtime.device))
    is_first, count, labels = runtime.rank == 0, len(source.readable), labels_to_learn(source, eval_source)
    method = build.method_of(recipe, num_samples=count, labels=labels)
    network = counted(recipe, method.encoder) if is_first else ""
    method = build.prepare(method, recipe, runtime.device)
    state, damaged = checkpoint.load_newest(run_dir / "checkpoints", method=recipe.method.name)
    if state is None and recipe.init_from:
        build.initialise(method, initial_weights(recipe.init_from, method.encoder))
    step = 0 if state is None else int(state["step"])
    record = (
        MetricsWriter(run_dir, start_step=step, sinks=writers.sinks(run_dir, recipe)) if is_first else None
    )
    the_plan = plan_of(recipe, source)
    augment = Augment(recipe.view_policies(), recipe.views, recipe.stream_seed, recipe.train.batch_size)
    accumulates = recipe.train.accumulate > 1
    model = distributed.wrap(method, runtime.device, runtime.world_size, accumulates=accumulates)
    optimizer = optim.build_optimizer(method, recipe.train.optimizer)
    said = build.tune(runtime.device) + build.advise(recipe, runtime.device)  # no record holds it yet
    one_step = step_of(recipe, runtime, method, model, optimizer, said.append)
    on_device = device_views(recipe, runtime.device, source, augment, said.append)
    run = Run(
        recipe=recipe,
        runtime=runtime,
        run_dir=run_dir,
        plan=the_plan,
        loader=Loader(recipe, runtime, source, the_plan, augment, on_device),
        method=method,
        model=model,
        optimizer=optimizer,
        one_step=one_step,
        memory=link(recipe, the_plan, count, device=runtime.device, record=runtime.record),
        writer=checkpoint.Writer(run_dir / "checkpoints", recipe.method.name, recipe.checkpoint.keep),
        evaluator=Evaluator(recipe, runtime, source, eval_source, Unfinished(run_dir)),
        record=record,
        block=StepBlock(
            recipe.log.every_steps, record, recipe.train.batch_size, partial(stopping.asked, run_dir)
        ),
        base_lr=optim.base_lr(recipe.train.optimizer, recipe.train.batch_size),
        dropouts=dropping.layers_that_draw(method),
    )
    mixed = mixing(the_plan, source.labels) if is_first else ""
    for sentence in filter(None, [*damaged, source.describe(), network, mixed, *run.evaluator.notes, *said]):
        run.event(sentence)
    for speaker in (one_step, on_device):
        if isinstance(speaker, RecordedStep | DeviceViews):
            speaker.say = run.event
    run.event(_plan_sentence(run), total_steps=run.total_steps, threads=torch.get_num_threads())
    if state is not None:
        restore(run, state)
        follow_graph(run)
        run.event(resumed(run))
    elif run.memory:
        run.memory.begin()
    if is_first:
        pictures.save_views(run_dir, recipe, source, the_plan, augment)
    return run


def refresh_memory(run: Run) -> None:
    """Before an epoch, where the method asks for it: memory is rebuilt from features of the whole data set."""
    due = run.recipe.method.refresh(run.progress)
    if not run.memory or run.step % run.plan.steps_per_epoch or due == "no" or run.refreshed_at == run.step:
        return
    source, began, found = run.loader.source, time.time(), None
    if due == "features":
        readable = np.flatnonzero(source.readable)
        found = embed(run.method.embedder, source, run.recipe, run.runtime.device, readable)
    with stopping.held():
        run.memory.refresh(found, torch.from_numpy(source.readable), run.progress)
        run.event(f"memory of {source.readable.sum()} samples rebuilt in {time.time() - began:.1f} s")
        look_at_memory(run)
        follow_graph(run)
        run.refreshed_at = run.step


def look_at_memory(run: Run) -> dict[str, float]:
    """Signals of memory's health, recorded; labels judge it and change nothing."""
    values = run.memory.health(run.loader.source.labels) if run.memory else {}
    run.tally.looked(values)
    if values and run.record:
        run.record.write(run.step, values)
    return values


def follow_graph(run: Run) -> None:
    """Where the recipe asks for it, batches are of neighbours in the graph that memory holds."""
    if run.memory and run.recipe.train.sampler == "neighbours":
        run.plan = replace(run.plan, graph=run.memory.neighbour_graph())
        run.loader = replace(run.loader, plan=run.plan)
        run.memory.follow(indices_of(run.plan))


def train_epoch(run: Run) -> None:
    """The rest of the epoch in which `run.step` stands."""
    last = (run.step // run.plan.steps_per_epoch + 1) * run.plan.steps_per_epoch
    every, look = run.recipe.checkpoint.every_steps, run.recipe.log.memory_every_steps
    if run.step % run.plan.steps_per_epoch == 0:
        run.tally.begin_epoch()
    run.examiner.begin(run)
    run.model.train()
    run.block.begin()
    for micro_batches, waited in run.loader.steps(run.step, last):
        with stopping.held():
            with run.examiner.watching(run):
                logs = train_step(run, micro_batches)
            run.step += 1
            run.block.add(run.step - 1, (run.step - 1) / run.plan.steps_per_epoch, lr_of(run), logs, waited)
        if every and run.step % every == 0 and run.step < last:
            save(run)
            run.block.begin()
        if look and run.step % look == 0 and run.step < last:
            look_at_memory(run)
        if run.step < last:
            stop_if_asked(run)
    run.block.flush()


def stop_if_asked(run: Run) -> None:
    """Where another process trains than the one that is told to stop, all ranks learn of it with a block of steps."""
    if run.block.stop:
        raise stopping.StoppedError(stopping.asked(run.run_dir) or signal.SIGTERM)


def train_step(run: Run, micro_batches: list[Loaded]) -> dict[str, Tensor]:
    """One optimizer step on this rank's part of the global batch; returns its logs."""
    dropping.draw(run.dropouts, run.recipe.stream_seed, run.step, run.runtime.rank, run.runtime.device)
    parts = (
        (run.loader.to_batch(loaded), run.memory.snapshot(loaded[0].rows) if run.memory else {})
        for loaded in micro_batches
    )
    stepped = run.one_step(parts, len(micro_batches), run.progress, lr_of(run))
    if run.memory and stepped.push:
        run.memory.push(*stepped.push)
    return stepped.logs


def after_epoch(run: Run, epochs_done: int) -> None:
    """Online evaluation, report and checkpoint, each where it is due."""
    recipe, evaluated = run.recipe, {}
    if recipe.eval.every_epochs and epochs_done % recipe.eval.every_epochs == 0:
        evaluated = run.evaluator.online(trained(run))
    done = epochs_done == recipe.total_epochs
    due = recipe.checkpoint.every_epochs and epochs_done % recipe.checkpoint.every_epochs == 0
    with stopping.held():
        metrics = look_at_memory(run) | evaluated
        if run.record and evaluated:
            run.record.write(run.step, evaluated)
            run.block.look()
        run.tally.evaluated(run.step, evaluated)
        run.epochs_done = epochs_done
        said = examine(run, evaluated)
        best = metrics.get("eval/knn_top1")
        if done or (due and (best is not None or not run.writer.busy)):
            save(run, best)
    run.runtime.report(
        {"epoch": epochs_done, "step": run.step, **metrics, **({"finding": said} if said else {})}
    )
    if recipe.log.on_finding == "stop" and not done:
        stop_if_unhealthy(run, said)


# -------------------------------------------------------------------- around the step


def lr_of(run: Run) -> float:
    return optim.learning_rate(run.base_lr, run.recipe.train.schedule, run.progress)


def _plan_sentence(run: Run) -> str:
    p, r = run.plan, run.runtime
    return (
        f"{run.recipe.method.name}: {run.recipe.total_epochs} epochs of {p.steps_per_epoch} steps, batch {p.batch_size}"
        f" on {r.world_size} × {r.device.type} in {run.recipe.precision(r.device)}, lr {run.base_lr:.4g};"
        f" each epoch leaves out another {p.left_out} samples; code at {run_directory.commit() or 'no commit'}"
    )
