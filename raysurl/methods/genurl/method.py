"""GenURL (Li et al., TNNLS 2023): similarities of embeddings follow those of the input, whatever tells the latter.

κ(d, ν), eq. 1                            similarities.log_student_kernel
p_X = Σ_t α_t A_t κ(d̃_t, ν_X), eqs. 2, 4   `static_target`; each structure of the list is a term (genurl.structures)
p_Z = κ((d_Z − μ)/σ, ν_Z), eqs. 3, 5       `log_similarity`, of the neck's outputs h of the whole global batch
p'_X = β p_X + sg(p_{Z,l}), sec. III-B    `target`; p_{Z,l} is that of the encoder's outputs z, with ν_X; without a neck
                                          that of what enters the encoder's last layer
L(p_X, p_Z), eqs. 6-10                    similarities.similarity_loss, GKL by default

With the structure `instance` there are two views and the pairs are (row i of view 1, row j of view 2), the paper's N²;
`pairs=all` takes every pair of the 2B rows but a row with itself. Without it there is one view and every other pair.
The structure `teacher` is knowledge distillation (sec. IV-C): kind=bce, target=static, σ = σ_X = 1; with `instance`
beside it, KD+SSL. `memory_size` K is M of Tables IV and VI: B × (B+K) pairs, the columns beyond the batch a queue of
the teacher's embeddings and of h of the student's moving average.

Deviations: d_Z is 1 − cos, because the paper's cosine (`distance=literal`) rewards orthogonal positives; α_t stands
inside the sum of eq. 2 and A in eq. 4; p_X is clamped to 1, beyond which eq. 9 weights negatives below zero
(`target_clamp`); eq. 8 has the sign that can be minimised. p_{Z,l} is of z less its mean over the batch, as eq. 4
takes population statistics off distances: outputs behind a ReLU have cosines near .9 with each other, p_{Z,l} is
then ≥ γ for most pairs, and GKL's minimiser q = min(1, p/γ) draws all of them together. The recipes of the paper's
tables keep its letter, `centre_latents=false`. Choices where the paper is silent: σ = 0.1 of sec. V-A.b,
not the 1 of sec. V-B.e; losses are means over pairs, not sums; β falls with each step; l is the encoder's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from raysurl import distributed
from raysurl import functional as fn
from raysurl.errors import InputError
from raysurl.memory import Queue
from raysurl.method import (
    Batch,
    Build,
    Method,
    MethodConfig,
    Moment,
    Output,
    Progress,
    Push,
    Snapshot,
    TeacherKind,
    detached,
)
from raysurl.methods.genurl.graphs import own_graph
from raysurl.methods.genurl.memory import GraphMemory, Make
from raysurl.methods.genurl.structures import (
    AnyStructure,
    Distance,
    Graph,
    Instance,
    Neighbours,
    TeacherStructure,
    inputs_of,
    linear,
    log_similarity,
    with_columns,
)
from raysurl.nets.ema import MomentumTeacher
from raysurl.nets.heads import mlp
from raysurl.recipe.method_config import Refresh


class GenURL(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        structures: tuple[AnyStructure, ...] = Field(
            (Instance(),), min_length=1
        )  # what says which samples are alike: a list of {kind: instance | knn | graph | teacher, …}
        pairs: Literal["cross", "all"] = "cross"  # of two views
        target: Literal["static", "dynamic"] = "dynamic"  # static: of the input alone; dynamic: of z too
        beta_min: float = Field(0.0, ge=0, le=1)  # β does not fall below it
        centre_latents: bool = True  # False: p_{Z,l} is of latents as they are, the paper's letter
        target_clamp: Literal["clamp", "convex", "none"] = "clamp"  # what keeps the target at most 1
        kind: Literal["mse", "kl", "bce", "gkl"] = "gkl"  # the loss between similarities
        gamma: float = Field(0.1, ge=0)  # weight of dissimilar pairs in GKL
        reduction: Literal["mean", "sum"] = "mean"  # of the loss over pairs
        distance: Distance = "1-cos"  # between embeddings
        nu_x: float = Field(100.0, gt=0)  # degrees of freedom of the input's kernel
        nu_z: float = Field(100.0, gt=0)  # degrees of freedom of the embedding's kernel
        sigma: float = Field(0.1, gt=0)  # width of the embedding's kernel
        mu: float = Field(0.0, ge=0)  # distance that the embedding's kernel takes off
        neck: bool = True  # False: the encoder's output itself is embedded (dimension reduction, graphs)
        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)
        head_norm: bool = False
        memory_size: int = Field(0, ge=0)  # K of the momentum memory M, of the structure teacher
        momentum: float = Field(0.99, ge=0, le=1)  # of the moving average that fills it
        teacher_dim: int | None = Field(None, ge=1)  # M's width; None: found from the teacher
        max_pairs: int = Field(
            2**26, ge=4
        )  # that a step may hold, (V·B)² or across two views B²: 0.25 GiB a matrix

        @field_validator("structures")
        @classmethod
        def _weigh(cls, structures: tuple[AnyStructure, ...]) -> tuple[AnyStructure, ...]:
            """The raw input's weight, where none is given, falls to 0 beside instances alone."""
            if any(isinstance(s, Instance) for s in structures):
                return structures
            return tuple(s.without_instances() if isinstance(s, Neighbours) else s for s in structures)

        @model_validator(mode="after")
        def _check(self) -> GenURL.Config:
            kinds = [structure.kind for structure in self.structures]
            if len(set(kinds)) < len(kinds):
                raise ValueError(f"each kind of structure may be given once, not {', '.join(kinds)}")
            taught = "teacher" in kinds and set(kinds) <= {"teacher", "instance"} and self.pairs == "cross"
            if self.memory_size and (not taught or self.target == "dynamic" or not self.neck):
                needs = "the structure teacher, alone or beside instance, pairs=cross, target=static and neck=true"
                raise ValueError(f"memory_size needs {needs}")
            return self

        def for_teacher(self, dim: Callable[[], int]) -> GenURL.Config:
            needed = self.memory_size and self.teacher_dim is None
            return self.model_copy(update={"teacher_dim": dim()}) if needed else self

        def for_data(self, name: str, path: str | None, limit: int | None) -> GenURL.Config:
            """A graph whose file is not named is the data set's own."""
            unnamed = [isinstance(s, Graph) and s.path is None for s in self.structures]
            if not any(unnamed):
                return self
            own = {"path": own_graph(name, path, limit)}
            found = [
                s.model_copy(update=own) if u else s for s, u in zip(self.structures, unnamed, strict=True)
            ]
            return self.model_copy(update={"structures": tuple(found)})

        def views(self) -> dict[str, str]:
            if any(isinstance(structure, Instance) for structure in self.structures):
                return {"view_1": "mocov2", "view_2": "view_1"}
            return {"view": "plain"} if self.learns_from() == "no" else {"view_1": "mocov2"}

        def check(self, num_samples: int) -> None:
            for structure in self.structures:
                structure.check(num_samples)

        def remembers(self) -> type[Queue] | type[GraphMemory] | None:
            if self.memory_size:
                return Queue
            return GraphMemory if any(structure.from_graph for structure in self.structures) else None

        def memory(self, num_samples: int, seed: int) -> Queue | GraphMemory:
            if self.memory_size:
                assert self.teacher_dim is not None
                return Queue(self.memory_size, self.teacher_dim + self.dim, seed=seed)
            self.check(num_samples)
            over_samples = [structure for structure in self.structures if structure.from_graph]
            makers: dict[str, Make] = {
                s.kind: partial(s.graph, num_samples=num_samples, nu=self.nu_x) for s in over_samples
            }
            return GraphMemory(makers, num_samples)

        def refresh(self, progress: Progress) -> Refresh:
            """Once: the raw input does not change."""
            if progress.step or self.remembers() is not GraphMemory:
                return "no"
            return (
                "features" if any(structure.needs_features() for structure in self.structures) else "itself"
            )

        def largest_batch(self) -> int | None:
            views = 1 if self.pairs == "cross" else len(self.views())
            half = self.memory_size // 2  # (B + half)² − half² is B (B + K)
            return (math.isqrt(self.max_pairs + half**2) - half) // views

        def reads_hidden(self) -> bool:
            return self.target == "dynamic" and not self.neck

        def learns_from(self) -> TeacherKind:
            return (
                "any"
                if any(isinstance(structure, TeacherStructure) for structure in self.structures)
                else "no"
            )

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        make_norm = build.make_norm if config.head_norm else None
        self.neck = mlp(build.dim, config.hidden, config.dim, make_norm) if config.neck else nn.Identity()
        self.frozen = build.teacher
        average = MomentumTeacher(nn.Sequential(self.encoder, self.neck), shuffle=build.shuffle)
        self.average = average if config.memory_size else None

    @property
    def embedder(self) -> nn.Module:
        return nn.Flatten()

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        c = self.config
        if self.frozen:
            batch = self.frozen.teach(batch, next(iter(c.views())))
        if self.average:
            return self.against_memory(self.average, batch, snapshot, progress)
        z, h = self.embed([batch.views[name] for name in c.views()])
        latents = [distributed.gather(x.detach().float()) for x in z]
        embeddings = [distributed.gather_with_gradient(x) for x in h]

        p_x = self.target(self.static_target(batch, snapshot, progress), latents, progress)
        log_p_z = self.log_similarity(embeddings, c.nu_z)
        loss, p_z = self.compared(p_x, log_p_z, self.used(p_x))
        logs = detached(similarity=loss, p_x=p_x.mean(), p_z=p_z.mean())
        logs["health/std"] = fn.embedding_std(F.normalize(h[0], dim=1))
        return Output(loss, logs, _nothing_to_remember(batch) if snapshot else None)

    def embed(self, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Latents z, what p_{Z,l} compares, and embeddings h (b, D) fp32 of each view."""
        if self.config.neck:
            z = [self.encoder(x) for x in views]
            return z, [self.neck(x).float() for x in z]
        if self.config.reads_hidden():
            pairs = [self.encoder.with_hidden(x) for x in views]  # type: ignore[operator]
            return [hidden for hidden, _ in pairs], [out.float() for _, out in pairs]
        h = [self.encoder(x).float() for x in views]
        return h, h

    def against_memory(
        self, average: MomentumTeacher, batch: Batch, snapshot: Snapshot, progress: Moment
    ) -> Output:
        """Rows of the batch against columns of the batch and of M, whose entries not yet filled do not count.

        With the structure instance the batch's columns are the other view's, and a row's own one counts."""
        c, x = self.config, batch.views["view_1"]
        rows = [self.neck(self.encoder(batch.views[name])).float() for name in c.views()]
        own, t = rows[0], distributed.gather(batch.views["teacher"])
        h, *others = (distributed.gather_with_gradient(r) for r in rows)
        h_columns = others[0] if others else h
        t_queue, h_queue = snapshot["features"].split((t.shape[1], own.shape[1]), dim=1)
        p_x = with_columns(c.structures, self.scheduled(progress), t, t_queue, c.nu_x)
        columns = torch.cat([h_columns, h_queue])
        log_p_z = log_similarity(h, columns, c.distance, mu=c.mu, sigma=c.sigma, nu=c.nu_z)
        used = torch.cat([torch.arange(len(h), device=h.device), snapshot["index"]])[None] >= 0
        own_pair = torch.eye(*p_x.shape, dtype=torch.bool, device=h.device)  # (B, B + K)
        used = used.expand_as(own_pair) if others else used & ~own_pair
        p_x = p_x.clamp(0, 1) if c.target_clamp == "clamp" else p_x
        loss, p_z = self.compared(p_x, log_p_z, used)
        logs = detached(similarity=loss, p_x=_mean(p_x, used), p_z=_mean(p_z, used))
        logs["health/std"] = fn.embedding_std(F.normalize(own, dim=1))
        key = torch.cat([batch.views["teacher"], average(x, progress).float()], dim=1)
        return Output(loss, logs, Push(keys=key[None], index=batch.index))

    def after_step(self, progress: Moment) -> None:
        if self.average:
            student = nn.Sequential(self.encoder, self.neck)
            self.average.follow(student, self.scheduled(progress)["momentum"])

    def schedule(self, progress: Progress) -> dict[str, float]:
        c = self.config
        weights = {f"alpha_{s.kind}": s.alpha(progress) for s in c.structures}
        beta = max(c.beta_min, linear(1.0, 0.0, progress))
        return {**weights, "beta": beta, "momentum": c.momentum}

    def static_target(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Tensor:
        """p_X = Σ_t α_t A_t κ, (P, P) over the rows of `log_similarity`."""
        known = inputs_of(batch, snapshot)
        c, at = self.config, self.scheduled(progress)
        first, *others = (at[f"alpha_{s.kind}"] * s.similarity(known, c.nu_x) for s in c.structures)
        p = sum(others, first)  # (B, B)
        views = 1 if self._crosses else len(self.config.views())
        return p if views == 1 else p.repeat(views, views)

    def target(self, static: Tensor, latents: Sequence[Tensor], progress: Moment) -> Tensor:
        """What p_Z shall be: `static`, or with the encoder's own similarities p_{Z,l} beside β times it."""
        c, p = self.config, static
        if c.target == "dynamic":
            beta = self.scheduled(progress)["beta"]
            if c.centre_latents:
                middle = torch.cat(list(latents)).mean(dim=0)
                latents = [z - middle for z in latents]
            own = self.log_similarity(latents, c.nu_x).exp()
            p = beta * static + ((1 - beta) * own if c.target_clamp == "convex" else own)
        return p.clamp(0, 1) if c.target_clamp == "clamp" else p

    def log_similarity(self, rows: Sequence[Tensor], nu: float) -> Tensor:
        """log κ((d − μ)/σ, ν) of rows (B, D) of each view: (B, B) across two views, else (V·B, V·B) of all."""
        first, last = (rows[0], rows[-1]) if self._crosses else (torch.cat(list(rows)),) * 2
        c = self.config
        return log_similarity(first, last, c.distance, mu=c.mu, sigma=c.sigma, nu=nu)

    def compared(self, p_x: Tensor, log_p_z: Tensor, used: Tensor | None) -> tuple[Tensor, Tensor]:
        """L(p_X, p_Z) over the pairs that count, and p_Z without gradient."""
        c, p_z = self.config, log_p_z.detach().exp()
        loss = fn.similarity_loss(
            p_x, p_z, log_q=log_p_z, kind=c.kind, gamma=c.gamma, mask=used, reduction=c.reduction
        )
        return loss, p_z

    def used(self, p: Tensor) -> Tensor | None:
        """Pairs (P, P) that count: across views all, among the same rows all but a row with itself."""
        if self._crosses:
            return None
        if len(p) == 1:
            raise InputError("a batch of one sample has no pair; use train.batch_size of at least 2")
        return ~torch.eye(len(p), dtype=torch.bool, device=p.device)

    @property
    def _crosses(self) -> bool:
        return self.config.pairs == "cross" and len(self.config.views()) == 2


def _mean(values: Tensor, used: Tensor) -> Tensor:
    return values.masked_fill(~used, 0).sum() / used.sum().clamp(min=1)


def _nothing_to_remember(batch: Batch) -> Push:
    return Push(keys=batch.index.new_zeros((1, len(batch.index), 0), dtype=torch.float32), index=batch.index)
