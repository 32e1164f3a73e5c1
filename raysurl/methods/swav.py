"""SwAV (Caron et al. 2020): predict the cluster assignment of one view from the others.

L = Σ_{s∈{1,2}} Σ_{v≠s} ℓ(z_v, q_s), eqs. 1 and 6                   `forward`, its mean over the terms, as the authors'
ℓ(z, q) = −Σ_k q_k log p_k, p = softmax(zᵀC/τ), eq. 2               F.cross_entropy with the codes as targets
Q* = Diag(u) exp(CᵀZ/ε) Diag(v), eqs. 3-5                          `sinkhorn`, three iterations, over all ranks
prototypes C of unit length before each step; frozen at first      `forward`; `before_update`
queue of past embeddings joins the codes of small batches          memory.Queue, begun with epoch `queue_epoch`

Defaults of the paper and the authors' code: projector of 2048 hidden units and 128 outputs, 3000 prototypes, τ = 0.1,
ε = 0.05, prototypes frozen for the first 313 steps (an epoch in batches of 4096), a queue (of 3840 for batches of 256,
from epoch 15 on) only where asked for. An entry of the queue is the embeddings of both views of a sample, which join
the codes of their own view as soon as the queue is full. Views of one size pass the encoder as one batch. `small_views`
names further views that only predict (multi-crop); the recipe gives their size and crop under `views.policies`. Their
LARC scales and decays all parameters: `decay_filter: all` with lars.
Deviations: the warm-up is lr·t/T at step t of T, theirs reaches lr with its last step (t/(T − 1)). The default views
are MoCo v2's, whose colour jitter has half the strength.
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
        prototypes: int = Field(3000, ge=2)  # number of prototypes
        tau: float = Field(0.1, gt=0)
        epsilon: float = Field(0.05, gt=0)  # sharpness of the assignment
        sinkhorn_iterations: int = Field(3, ge=1)  # of the assignment
        frozen_steps: int = Field(313, ge=0)  # before the prototypes learn
        queue_size: int = Field(0, ge=0)  # 0: none
        queue_epoch: int = Field(15, ge=0)  # from which the queue is used
        small_views: tuple[str, ...] = ()  # names of small views beside the two large ones

        @field_validator("small_views")
        @classmethod
        def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if len({*names, *ASSIGNED}) < len(names) + len(ASSIGNED):
                raise ValueError(f"give each view its own name, and none of {', '.join(ASSIGNED)}")
            return names

        def views(self) -> dict[str, str]:
            small = dict.fromkeys(self.small_views, "contrastive")
            return {"view_1": "contrastive", "view_2": "view_1"} | small

        def remembers(self) -> type[Queue] | None:
            return Queue if self.queue_size else None

        def memory(self, num_samples: int, seed: int) -> Queue:
            return Queue(self.queue_size, len(ASSIGNED) * self.dim, seed=seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config, self.batch_size = config, build.batch_size
        self.encoder = build.encoder
        self.projector = mlp(build.dim, config.hidden, config.dim, build.make_norm)
        directions = torch.empty(config.prototypes, config.dim).uniform_(-1, 1)
        self.prototypes = nn.Parameter(F.normalize(directions, dim=1))

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        z = self.embed([batch.views[name] for name in (*ASSIGNED, *self.config.small_views)])
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        with fn.full_precision(z[0]):
            scores = [x @ self.prototypes.T for x in z]
            losses = []
            for s in range(len(ASSIGNED)):
                codes = self.codes(scores[s], self.queued(s, snapshot, progress))
                others = [score for v, score in enumerate(scores) if v != s]
                losses += [F.cross_entropy(score / self.config.tau, codes) for score in others]
        loss = fn.mean_of(losses)
        pairs = torch.cat(z[: len(ASSIGNED)], dim=1).detach()
        push = Push(keys=pairs[None], index=batch.index) if self.config.queue_size else None
        return Output(loss, detached(swapped=loss) | {"health/std": fn.embedding_std(z[0])}, push)

    def phase(self, progress: Progress) -> tuple[bool, bool]:
        """Whether the prototypes learn, and whether the queue joins the codes."""
        c = self.config
        steps = progress.step - c.queue_epoch * progress.steps_per_epoch  # since the queue's time began
        filled = steps * self.batch_size >= c.queue_size
        return progress.step >= c.frozen_steps, bool(c.queue_size) and filled

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """Views (b, C, H, W) -> unit rows (b, D) of each."""
        sizes = [torch.cat(list(same)) for _, same in groupby(views, key=lambda x: x.shape)]
        features = torch.cat([self.encoder(x) for x in sizes])
        return list(F.normalize(self.projector(features).float(), dim=1).split(len(views[0])))

    def queued(self, view: int, snapshot: Snapshot, progress: Moment) -> Tensor | None:
        """Embeddings (K, D) of an assigned view in the queue; None until steps of the queue's time have filled it."""
        _, queue_joins = self.in_phase(progress)
        width = self.config.dim
        return snapshot["features"][:, view * width : (view + 1) * width] if queue_joins else None

    @torch.no_grad()
    def codes(self, scores: Tensor, queued: Tensor | None) -> Tensor:
        """q (b, P) of this rank's rows, from its scores (b, P), those of all ranks and of the queue."""
        rows, own = distributed.gather(scores.detach()), distributed.own_rows(scores)
        if queued is not None:
            rows = torch.cat([rows, queued @ self.prototypes.T])
        return sinkhorn(rows / self.config.epsilon, iterations=self.config.sinkhorn_iterations)[own]

    def before_update(self, progress: Moment) -> None:
        """Without a gradient an optimizer leaves a parameter alone: no decay, no momentum."""
        learns, _ = self.in_phase(progress)
        if not learns:
            self.prototypes.grad = None


def sinkhorn(log_q: Tensor, *, iterations: int) -> Tensor:
    """Codes (R, P) of scores/ε (R, P): rows sum to 1, and columns, after enough iterations, to R/P (eqs. 3-5).

    Works on logarithms, in which nothing overflows; a constant factor of all columns is undone by the rows, so that
    both are simply normalised in turn.
    """
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0)
        log_q = F.log_softmax(log_q, dim=1)
    return log_q.exp()
