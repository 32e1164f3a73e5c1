"""Trajectories of whole training steps by the authors' own code, replayed by the trainer's step on our methods.

A file `NAME_trajectory_*.npz` holds initial weights, views and losses of T steps, and final weights; its settings say
all that is generic. A `Case` says which recipe follows it and how their names are ours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract
import numpy as np
import torch
import torch.nn.functional as F
from places import SHARED
from torch import Tensor

from raysurl import build
from raysurl.memory.link import LocalRecord, MemoryLink
from raysurl.method import Batch, Method, Progress
from raysurl.recipe import Recipe, load_recipe
from raysurl.train import optim, trainer
from raysurl.train.step import Step

NETWORK = {"conv1": "layers.0", "bn1": "layers.1", "conv2": "layers.3", "bn2": "layers.4"}  # of every file


def files() -> list[Path]:
    return sorted((SHARED / "golden" / "steps").glob("*_trajectory_*.npz"))


@dataclass(frozen=True)
class Trajectory:
    """One file: `settings` by name, and arrays; float16 views are exactly the float32 inputs."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> "Trajectory":
        with np.load(path) as values:
            return cls(path.name.split("_trajectory_")[0], dict(values))

    @cached_property
    def settings(self) -> dict[str, float]:
        names = [str(name).rstrip(";") for name in self.arrays["settings_names"]]
        return dict(zip(names, self.arrays["settings"].tolist(), strict=False))

    def whole(self, name: str) -> int:
        return int(self.settings[name])

    def tensor(self, name: str) -> Tensor:
        value = torch.from_numpy(self.arrays[name])
        return value.float() if value.is_floating_point() else value

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with `prefix/`, without it."""
        return {k.split("/", 1)[1]: self.tensor(k) for k in self.arrays if k.startswith(f"{prefix}/")}

    def final(self) -> dict[str, Tensor]:
        """Final tensors; those of an average behind its last update, named `average/…` where they share names."""
        found, averaged = (
            self.part("final") | self.part("final_after_next_ema"),
            "final_ema_after_next_update",
        )
        shared = not any("encoder_k" in name for name in found)
        return found | {f"average/{k}" if shared else k: v for k, v in self.part(averaged).items()}

    @property
    def rounds(self) -> int:
        return int(self.settings.get("rounds", 1))

    @property
    def epochs(self) -> int:
        return self.whole("epochs_per_round" if "epochs_per_round" in self.settings else "epochs")


@dataclass(frozen=True)
class Case:
    """How to follow a file. `names`: their prefix -> ours, the first that fits; None: no counterpart, without effect.

    `settings` key=value for the recipe. `loss` of ours is theirs. `own_lr` follows our schedule, not the file's rates.
    """

    recipe: str
    settings: Callable[[Trajectory], dict[str, Any]]
    names: Mapping[str, str | None]
    views: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs where they differ
    loss: Callable[[float], float] = lambda loss: loss
    own_lr: bool = True
    without_effect: tuple[str, ...] = ()  # our names of what is not compared
    encoder: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Replay:
    """What our code did: per step `losses` and `lrs`, and the end of everything that it holds."""

    trajectory: Trajectory
    case: Case
    method: Method
    memory: MemoryLink | None
    losses: np.ndarray
    lrs: np.ndarray
    discovered: list[Any]

    def loss_difference(self) -> float:
        return float(np.abs(self.losses - self.trajectory.arrays["loss"]).max())

    def weight_differences(self) -> dict[str, float]:
        """By our names: of all tensors of the file's final state that have a counterpart."""
        ours, found = self.method.state_dict(), {}
        for name, theirs in self.trajectory.final().items():
            own = own_name(name, self.case.names)
            if own not in (None, *self.case.without_effect) and not own.endswith("num_batches_tracked"):
                found[own] = float((ours[own] - theirs).abs().max())
        return found


def recipe_of(trajectory: Trajectory, case: Case) -> Recipe:
    t, s = trajectory, trajectory.settings
    views = t.part("views")
    encoder = {"name": "convnet", "channels": [8, 16], "small_stem": False, **case.encoder}
    given = {
        "views.size": next(iter(views.values())).shape[-1],
        "encoder": encoder,
        "train.batch_size": t.whole("B"),
        "train.accumulate": 1,
        "train.epochs": t.epochs,
        "train.rounds": t.rounds,
        "train.precision": "fp32",
        "train.channels_last": False,
        "train.schedule.warmup_epochs": s.get("warmup_epochs", 0),
        "train.optimizer.lr_batch": 0,
        "train.optimizer.lr": s.get("lr", s.get("lr_weights")),
        "train.optimizer.weight_decay": s.get("weight_decay", s.get("weight_decay_of_matrices_only")),
        "data.path": "nowhere",
        **case.settings(t),
    }
    return load_recipe([f"recipe={case.recipe}", *(f"{key}={value}" for key, value in given.items())])


def own_name(theirs: str, names: Mapping[str, str | None]) -> str | None:
    """Our name of their tensor; KeyError for one that no prefix fits."""
    for prefix, own in names.items():
        if theirs == prefix or theirs.startswith(f"{prefix}."):
            return None if own is None else own + theirs[len(prefix) :]
    raise KeyError(theirs)


def load_weights(method: Method, theirs: Mapping[str, Tensor], names: Mapping[str, str | None]) -> None:
    """Their initial weights; a bias that theirs lack begins at 0, a norm without scale and shift is 1 and 0."""
    found = {own: value for name, value in theirs.items() if (own := own_name(name, names)) is not None}
    missing = {name for name in method.state_dict() if name not in found and not name.startswith("teacher")}
    averaged = {k for k in method.state_dict() if k.startswith("teacher") and k not in found}
    for name in missing:
        assert name.endswith(("bias", ".weight", "running_mean", "running_var", "num_batches_tracked")), name
        value = method.state_dict()[name]
        assert value.dim() <= 1, f"{name} has no counterpart"
        found[name] = torch.zeros_like(value) if name.endswith("bias") else value
    method.load_state_dict(found, strict=False)
    for name in averaged:  # an average begins as a copy
        source = name.replace("teacher.net.0.", "encoder.").replace("teacher.net.1.", "projector.")
        method.state_dict()[name].copy_(method.state_dict()[source])


class GivenTeacher:
    """A teacher whose embeddings are in the file: `rows` (b, D), or (4·b, D) by turn, of the current step."""

    rows: Tensor
    on_host = False

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def embed(self, x: Tensor) -> Tensor:
        assert len(x) == len(self.rows)
        return self.rows

    def teach(self, batch: Batch, view: str) -> Batch:
        return replace(batch, views={**batch.views, "teacher": self.rows})


def memory_of(trajectory: Trajectory, recipe: Recipe, samples: int) -> MemoryLink | None:
    """The recipe's memory with the file's initial content, behind the link that training has."""
    if recipe.method.remembers() is None:
        return None
    memory: Any = recipe.method.memory(samples, 0)
    arrays = trajectory.arrays
    if "init/queue" in arrays:
        memory.features.copy_(trajectory.tensor("init/queue").T)
    elif "queue_init" in arrays:
        memory.features.copy_(
            F.normalize(trajectory.tensor("queue_init"), dim=1)
        )  # theirs is normalised in use
        memory.index.zero_()  # filled
    else:
        memory.bank.features.copy_(trajectory.tensor("memory_init"))
        memory.seen.fill_(True)
    index = trajectory.tensor("index")
    link = MemoryLink(
        memory,
        memory.mirror(torch.device("cpu")),
        record=LocalRecord(memory) if memory.answers else None,
        staleness=0,
        plan=lambda step: index[min(step, len(index) - 1)],
    )
    link.begin()
    return link


def batches(trajectory: Trajectory, case: Case, names: list[str]) -> Iterator[Batch]:
    theirs, index = trajectory.part("views"), trajectory.tensor("index")
    for t in range(len(index)):
        yield Batch(index[t], {name: theirs[case.views.get(name, name)][t] for name in names})


def replay(trajectory: Trajectory, case: Case) -> Replay:
    """Every step of the file by `trainer.train_step`."""
    recipe, arrays = recipe_of(trajectory, case), trajectory.arrays
    samples = int(trajectory.settings.get("N", trajectory.tensor("index").max() + 1))
    method = build.method_of(recipe, num_samples=samples).train()
    load_weights(method, trajectory.part("init"), case.names)
    memory = memory_of(trajectory, recipe, samples)
    names = list(recipe.method.views())
    if taught := [key for key in ("teacher", "teacher_by_turn") if key in arrays]:
        method.frozen = GivenTeacher()
    optimizer = optim.build_optimizer(method, recipe.train.optimizer)
    run: Any = SimpleNamespace(
        recipe=recipe,
        runtime=SimpleNamespace(rank=0, device=torch.device("cpu")),
        loader=SimpleNamespace(to_batch=lambda loaded: loaded[1]),
        method=method,
        memory=memory,
        one_step=Step(method, method, optimizer, torch.device("cpu"), bf16=False, clip=recipe.train.clip),
        base_lr=optim.base_lr(recipe.train.optimizer, recipe.train.batch_size),
        dropouts=[],
    )
    total, losses, lrs, discovered = len(arrays["index"]), [], [], []
    assert total == trajectory.rounds * trajectory.epochs * trajectory.whole("steps_per_epoch")
    for t, batch in enumerate(batches(trajectory, case, names)):
        run.step, run.progress = (
            t,
            Progress(t, total, trajectory.whole("steps_per_epoch"), rounds=trajectory.rounds),
        )
        if memory and method.config.refresh(run.progress) != "no":
            memory.refresh(None, torch.ones(samples, dtype=torch.bool), run.progress)
            discovered.append(memory.record.memory.neighbours.clone())
        if taught:
            method.frozen.rows = trajectory.tensor(taught[0])[t].flatten(0, -2)
        if not case.own_lr:
            run.base_lr = float(arrays["lr"][t])
        lrs.append(trainer.lr_of(run))
        logs = trainer.train_step(run, [(SimpleNamespace(rows=slice(None)), batch)])
        losses.append(case.loss(float(logs["loss"])))
    return Replay(trajectory, case, method, memory, np.array(losses), np.array(lrs), discovered)


def encoder_names(theirs: str, ours: str) -> dict[str, str]:
    """Their tiny network under `theirs` is our convnet under `ours`."""
    dot = f"{theirs}." if theirs else ""
    return {f"{dot}{layer}": f"{ours}.{own}" for layer, own in NETWORK.items()}


def teacher_file() -> str:
    return contract.tiny_teacher()
