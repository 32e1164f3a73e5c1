"""One optimizer step: forward, backward, clipping, update, moving averages.

`Step` runs it eagerly on any device. `RecordedStep` runs the same step recorded: once as a CUDA graph for each form
that it takes, then replayed, so that the host launches one graph instead of a thousand kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysurl import distributed
from raysurl.errors import InputError, first_line
from raysurl.memory.link import gather_push
from raysurl.method import Batch, Method, Moment, NotRecordableError, Output, Progress, Recorded, Snapshot
from raysurl.recipe import Recipe
from raysurl.runtime import Runtime
from raysurl.train import optim
from raysurl.train.recording import CudaGraph, StepRecorder

Part = tuple[Batch, Snapshot]  # what a micro-batch sees
WARM_STEPS = 3  # run unrecorded in each form: libraries choose algorithms, and optimizers make their state


@dataclass(frozen=True)
class Stepped:
    """`logs` name -> scalar; `push` keys (V·B, D) and indices (V·B,) of the whole global batch, where there are any."""

    logs: dict[str, Tensor]
    push: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Step:
    """The step of one rank, run eagerly. `model` is the method, under DDP where there are several ranks."""

    method: Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    bf16: bool
    clip: float | None

    def __call__(self, parts: Iterable[Part], count: int, progress: Progress, lr: float) -> Stepped:
        """`parts` are this rank's `count` micro-batches, made as they are needed."""
        optim.set_lr(self.optimizer, lr)
        outputs = self.gradients(parts, count, progress)
        norm = self.update(progress)
        self.method.after_step(progress)
        return self.result(outputs, norm)

    def gradients(self, parts: Iterable[Part], count: int, moment: Moment) -> list[Output]:
        outputs = []
        for i, (batch, snapshot) in enumerate(parts):
            with distributed.gradients_meet(self.model, last=i == count - 1), self.autocast():
                output: Output = self.model(batch, snapshot, moment)
            (output.loss / count).backward()
            outputs.append(output)
        return outputs

    def update(self, moment: Moment) -> Tensor:
        """Returns the norm of the gradient before clipping, on the device."""
        self.method.before_update(moment)
        gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip:
            nn.utils.clip_grads_with_norm_(self.method.parameters(), self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def result(self, outputs: list[Output], norm: Tensor | None) -> Stepped:
        terms = [{"loss": o.loss.detach(), **o.logs} for o in outputs]
        logs = {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}
        if norm is not None:
            logs["health/grad_norm"] = norm
        return Stepped(logs, gather_push(outputs) if any(o.push for o in outputs) else None)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 for the networks; losses compute in fp32 by themselves."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class RecordedStep:
    """The same step, replayed. A step of another form, by `Method.phase` or by shapes, is recorded anew.

    What differs from step to step enters through tensors at fixed addresses: views, indices and memory's answers are
    copied there (memory's mirror stands there already), numbers of the schedule are filled in. Where recording fails,
    the run goes on eagerly and `say` is told why.
    """

    def __init__(
        self, step: Step, say: Callable[[str], None], new_graph: Callable[[], StepRecorder] = CudaGraph
    ) -> None:
        self.step, self.say, self.new_graph = step, say, new_graph
        self.fails = False
        self._form: Hashable = None
        self._lr = torch.zeros((), device=step.device)
        self._forget()

    def __call__(self, parts: Iterable[Part], count: int, progress: Progress, lr: float) -> Stepped:
        parts = list(parts)
        if self.fails or count > 1:
            return self.step(parts, count, progress, lr)
        form = (self.step.method.phase(progress), _shapes(parts[0]))
        if form != self._form:
            self._begin(form, parts[0], progress)
        self._fill(parts[0], progress, lr)
        if self._graph is None and self._warm < WARM_STEPS:
            self._warm += 1
            return self._unrecorded(parts, progress, lr)
        if self._graph is None and not self._record():
            return self.step(parts, count, progress, lr)
        assert self._graph is not None
        self._graph.replay()
        return _own(self._result)

    def _forget(self) -> None:
        self._graph: StepRecorder | None = None
        self._result = Stepped({}, None)

    def _begin(self, form: Hashable, part: Part, progress: Progress) -> None:
        self._forget()
        self._form, self._warm = form, 0
        self._part = part  # the first tensors of this form stand where the later ones are copied
        names = sorted(self.step.method.schedule(progress))
        self._values = torch.zeros(1 + len(names), dtype=torch.float64, device=self.step.device)
        held = dict(zip(names, self._values[1:].unbind(), strict=True))
        self._moment = Recorded(held, self.step.method.phase(progress))

    def _fill(self, part: Part, progress: Progress, lr: float) -> None:
        now = self.step.method.schedule(progress)
        numbers = torch.tensor([lr, *(now[name] for name in sorted(now))], dtype=torch.float64)
        self._values.copy_(numbers.pin_memory() if self._values.is_cuda else numbers, non_blocking=True)
        for (_, held), (_, given) in zip(_tensors(self._part), _tensors(part), strict=True):
            if held.data_ptr() != given.data_ptr():
                held.copy_(given, non_blocking=True)

    def _unrecorded(self, parts: list[Part], progress: Progress, lr: float) -> Stepped:
        """What will be recorded, run as it is; an end by NotRecordableError leaves a whole step behind."""
        graph = self.new_graph()
        try:
            outputs = graph.aside(self._gradients)
        except NotRecordableError as error:
            self._give_up(error)
            return self.step(parts, 1, progress, lr)
        try:
            return graph.aside(lambda: self._finish(outputs))
        except NotRecordableError as error:
            self._give_up(error)
            self.step.method.after_step(progress)
            return self.step.result(outputs, None)

    def _record(self) -> bool:
        graph = self.new_graph()
        try:
            self._result = graph.record(lambda: self._finish(self._gradients()))
        except Exception as error:  # whatever a library finds that it cannot do while it is recorded
            self._give_up(error)
            return False
        self._graph = graph
        self.say("the step is recorded as a CUDA graph")
        return True

    def _gradients(self) -> list[Output]:
        self._lr.copy_(self._values[0])
        optim.set_lr(self.step.optimizer, self._lr)
        return self.step.gradients([self._part], 1, self._moment)

    def _finish(self, outputs: list[Output]) -> Stepped:
        norm = self.step.update(self._moment)
        self.step.method.after_step(self._moment)
        return self.step.result(outputs, norm)

    def _give_up(self, error: Exception) -> None:
        self.fails = True
        self._forget()
        self.step.optimizer.zero_grad()
        self.say(f"the step runs eagerly, not as a CUDA graph: {first_line(error)}")


def step_of(
    recipe: Recipe,
    runtime: Runtime,
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> Step | RecordedStep:
    """The step as `train.cuda_graph` wants it. Raises InputError where it is `true` and cannot be."""
    train = recipe.train
    step = Step(
        method, model, optimizer, runtime.device, recipe.precision(runtime.device) == "bf16", train.clip
    )
    if train.cuda_graph is False:
        return step
    reason = against_recording(recipe, runtime, method)
    if reason and train.cuda_graph is True:
        raise InputError(f"train.cuda_graph=true cannot be: {reason}; use train.cuda_graph=auto")
    if reason and runtime.device.type == "cuda":
        say(f"the step runs eagerly, not as a CUDA graph: {reason}")
    return step if reason else RecordedStep(step, say)


def against_recording(recipe: Recipe, runtime: Runtime, method: Method) -> str | None:
    """Why the steps of this run cannot be recorded; None where they can."""
    if runtime.device.type != "cuda":
        return "the run is not on a GPU"
    if runtime.world_size > 1:
        return "several ranks exchange gradients within it"
    if recipe.train.accumulate > 1:
        return f"train.accumulate={recipe.train.accumulate} makes several passes of it"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in method.modules()):
        return "the network draws dropout"
    return method.runs_eagerly()


def _tensors(part: Part) -> list[tuple[str, Tensor]]:
    batch, snapshot = part
    views = [(f"view {name}", batch.views[name]) for name in sorted(batch.views)]
    return [
        ("index", batch.index),
        *views,
        *((f"memory {name}", snapshot[name]) for name in sorted(snapshot)),
    ]


def _shapes(part: Part) -> Hashable:
    return tuple((name, x.shape, x.dtype, x.device) for name, x in _tensors(part))


def _own(stepped: Stepped) -> Stepped:
    """A copy of what the next replay overwrites."""
    names = list(stepped.logs)
    values = torch.stack([stepped.logs[name].float() for name in names]).unbind()
    push = stepped.push and (stepped.push[0].clone(), stepped.push[1].clone())
    return Stepped(dict(zip(names, values, strict=True)), push)
