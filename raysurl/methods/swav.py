"""SwAV (Caron et al. 2020): predict the cluster assignment of one view from the others.

L = Σ_{s∈{1,2}} Σ_{v≠s} ℓ(z_v, q_s), eqs. 1 and 6                   `forward`, its mean over the terms, as the authors'
ℓ(z, q) = −Σ_k q_k log p_k, p = softmax(zᵀC/τ), eq. 2               F.cross_entropy with the codes as targets
Q* = Diag(u) exp(CᵀZ/ε) Diag(v), eqs. 3-5                          `sinkhorn`, three iterations, over all ranks
prototypes C of unit length before each step; frozen at first      `after_step`; `prototypes_at`, a gradient mask
queue of past embeddings joins the codes of small batches          memory.Queue, from epoch `queue_epoch` on

Defaults of the paper and the authors' code: projector of 2048 hidden units and 128 outputs, 3000 prototypes, τ = 0.1,
ε = 0.05, prototypes frozen for the first epoch (313 steps of 4096), a queue (of 3840 for batches of 256, from epoch
15 on) only where asked for. Views of one size pass the encoder as one batch. `small_views` names further views that
only predict (multi-crop); the recipe gives their size and crop under `views.policies`.
Deviations: one queue holds the embeddings of both views, theirs is one per view; it is filled from the first step,
and used as far as it is filled. The default views are MoCo v2's, whose colour jitter has half the strength.
The mask leaves a prototype to weight decay and momentum, which only change its length under SGD, LARS and AdamW;
Adam's decay would turn it.
"""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from raysurl import distributed
from raysurl import functional as fn
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
    detached,
)
from raysurl.nets.heads import mlp

ASSIGNED = ("view_1", "view_2")  # the views that codes are computed for


class SwAV(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)
        prototypes: int = Field(3000, ge=2)
        tau: float = Field(0.1, gt=0)
        epsilon: float = Field(0.05, gt=0)
        sinkhorn_iterations: int = Field(3, ge=1)
        frozen_epochs: float = Field(1, ge=0)  # before the prototypes learn
        queue_size: int = Field(0, ge=0)  # 0: none
        queue_epoch: int = Field(15, ge=0)
        small_views: tuple[str, ...] = ()

        @field_validator("small_views")
        @classmethod
        def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if len({*names, *ASSIGNED}) < len(names) + len(ASSIGNED):
                raise ValueError(f"give each view its own name, and none of {', '.join(ASSIGNED)}")
            return names

        def views(self) -> dict[str, str]:
            return dict.fromkeys((*ASSIGNED, *self.small_views), "contrastive")

        def remembers(self) -> type[Queue] | None:
            return Queue if self.queue_size else None

        def memory(self, num_samples: int, seed: int) -> Queue:
            return Queue(self.queue_size, self.dim, seed=seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm)
        directions = torch.empty(config.prototypes, config.dim).uniform_(-1, 1)
        self.prototypes = nn.Parameter(F.normalize(directions, dim=1))

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z = self.embed([batch.views[name] for name in (*ASSIGNED, *self.config.small_views)])
        with fn.full_precision(z[0]):
            prototypes = self.prototypes_at(progress)
            scores = [x @ prototypes.T for x in z]
            losses = []
            for s in range(len(ASSIGNED)):
                codes = self.codes(scores[s], snapshot, progress)
                others = [score for v, score in enumerate(scores) if v != s]
                losses += [F.cross_entropy(score / self.config.tau, codes) for score in others]
        loss = fn.mean_of(losses)
        keys = torch.stack(z[: len(ASSIGNED)]).detach()
        push = Push(keys=keys, index=batch.index) if self.config.queue_size else None
        return Output(loss, detached(swapped=loss) | {"health/std": fn.embedding_std(z[0])}, push)

    def phase(self, progress: Progress) -> tuple[bool, bool]:
        """Whether the prototypes learn, and whether the queue joins the codes."""
        c = self.config
        learns = progress.step >= c.frozen_epochs * progress.steps_per_epoch
        return learns, bool(c.queue_size and progress.epoch >= c.queue_epoch)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """Views (b, C, H, W) -> unit rows (b, D) of each."""
        sizes = [torch.cat(list(same)) for _, same in groupby(views, key=lambda x: x.shape)]
        features = torch.cat([self.encoder(x) for x in sizes])
        return list(F.normalize(self.projector(features).float(), dim=1).split(len(views[0])))

    def prototypes_at(self, progress: Moment) -> Tensor:
        """C (P, D), whose gradient is zero while frozen; zero rather than none, as all ranks wait for one."""
        learns, _ = self.in_phase(progress)
        fixed = self.prototypes.detach()
        return fixed + float(learns) * (self.prototypes - fixed)

    @torch.no_grad()
    def codes(self, scores: Tensor, snapshot: Snapshot, progress: Moment) -> Tensor:
        """q (b, P) of this rank's rows, from its scores (b, P), those of all ranks and of the queue."""
        rows, left_out = distributed.gather(scores.detach()), None
        own = distributed.own_rows(scores)
        _, queue_joins = self.in_phase(progress)
        if queue_joins:
            filled_later = snapshot["index"] < 0
            left_out = torch.cat([torch.zeros_like(rows[:, 0], dtype=torch.bool), filled_later])
            rows = torch.cat([rows, snapshot["features"] @ self.prototypes.T])
        log_q = rows / self.config.epsilon
        return sinkhorn(log_q, iterations=self.config.sinkhorn_iterations, left_out=left_out)[own]

    @torch.no_grad()
    def after_step(self, progress: Moment) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))


def sinkhorn(log_q: Tensor, *, iterations: int, left_out: Tensor | None = None) -> Tensor:
    """Codes (R, P) of scores/ε (R, P): rows sum to 1, and columns, after enough iterations, to R/P (eqs. 3-5).

    `left_out` (R,) bool: rows that have no say in the columns. Works on logarithms, in which nothing overflows; a
    constant factor of all columns is undone by the rows, so that both are simply normalised in turn.
    """
    for _ in range(iterations):
        counted = log_q if left_out is None else log_q.masked_fill(left_out[:, None], -torch.inf)
        log_q = log_q - torch.logsumexp(counted, dim=0)
        log_q = F.log_softmax(log_q, dim=1)
    return log_q.exp()
