"""RCL: relative contrastive learning (Tang et al., ECCV 2022), with an online hierarchical clustering.

q_i = P_i(z), sec. 4.1             `queries`: H predictors on the query projection z = projector(encoder(v))
ẑ' = K(v'), EMA, no gradient       `teacher`: of the other view
z' from S, sec. 4.2, step 2        `key` in `loss`: the memory names a queue entry per criterion, or the own key
L_RCL, eqs. 2-3, α_i = 1/H         functional.relative_contrastive_loss, averaged over the two directions
warm-up with eq. 1                 every criterion sees the own key as positive until the first clustering

labels Y_i, sec. 4.3               hierarchy.Hierarchy, made once after the warm-up and followed batch by batch;
Table 4's offline arms             rcl.offline, made anew before each epoch after the warm-up (`hierarchy.kind`)

Choices where the paper is silent or inconsistent: τ divides inside the exponential of eq. 1; one key per criterion
(`key=per_level`), each scored under all criteria; the chosen entries do not also count as negatives (`dedupe`);
queue slots not yet filled are random negatives, as MoCo's, and never retrieved; the key network's projection feeds
the queue and the clusters.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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
from raysurl.methods.rcl import memory as cluster_memory
from raysurl.methods.rcl.clustering import Clustering, make_clusters
from raysurl.methods.rcl.memory import ClusterMemory
from raysurl.nets.ema import MomentumTeacher, momentum_at
from raysurl.nets.heads import mlp
from raysurl.recipe.method_config import Refresh

PICKS = {
    "per_level": cluster_memory.per_level,
    "sample": cluster_memory.one_level,
    "self": cluster_memory.own,
}


class RCL(Method):
    class Config(MethodConfig):
        hidden: int = Field(2048, ge=1)
        predictor_hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)
        hierarchy: Clustering = Clustering()  # clustering of the memory: {kind: online | dbscan | kmeans, …}
        predictors: Literal["one", "per_level"] = "per_level"  # one for all criteria, or one each
        key: Literal["per_level", "sample", "self", "nearest"] = (
            "per_level"  # what the positive of a criterion is
        )
        dedupe: bool = True  # positives do not also count as negatives
        queue_size: int = Field(98304, ge=1)
        tau: float = Field(0.1, gt=0)
        warmup_epochs: int = Field(10, ge=0)  # before the first clustering
        momentum: float = Field(0.99, ge=0, le=1)
        momentum_schedule: Literal["constant", "cosine"] = "cosine"

        def views(self) -> dict[str, str]:
            return {"view_1": "byol_1", "view_2": "byol_2"}

        def remembers(self) -> type[ClusterMemory]:
            return ClusterMemory

        def memory(self, num_samples: int, seed: int) -> ClusterMemory:
            clusters: Clustering = self.hierarchy
            return ClusterMemory(
                Queue(self.queue_size, self.dim, seed=seed),
                partial(make_clusters, clusters, num_samples, self.dim, seed),
                PICKS.get(self.key, cluster_memory.own),
                views=2,
                seed=seed,
                instance_level=clusters.instance_level,
            )

        def rule(self) -> str:
            return self.hierarchy.rule()

        def refresh(self, progress: Progress) -> Refresh:
            """Once after the warm-up; the offline arms before each epoch from then on. Never without clusters."""
            due = progress.epoch == self.warmup_epochs
            if self.hierarchy.kind != "online":
                due = progress.epoch >= self.warmup_epochs
            return "features" if self.hierarchy.depth and due else "no"

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.projector = mlp(
            build.dim, config.hidden, config.dim, build.make_norm, layers=3, output_norm="affine"
        )
        self.criteria = config.hierarchy.levels
        count = self.criteria if config.predictors == "per_level" else 1
        self.predictors = nn.ModuleList(
            mlp(config.dim, config.predictor_hidden, config.dim, build.make_norm) for _ in range(count)
        )
        self.teacher = MomentumTeacher(nn.Sequential(self.encoder, self.projector), shuffle=build.shuffle)

    @property
    def embedder(self) -> nn.Module:
        return self.teacher.net

    def queries(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> unit rows (H, b, D), a prediction for each criterion."""
        z = self.projector(self.encoder(x))
        q = F.normalize(torch.stack([predictor(z) for predictor in self.predictors]).float(), dim=2)
        return q.expand(self.criteria, -1, -1)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        first, second = batch.views["view_1"], batch.views["view_2"]
        keys = [F.normalize(self.teacher(x, progress).float(), dim=1) for x in (first, second)]
        losses = [
            self.loss(self.queries(first), keys[1], snapshot, direction=0),
            self.loss(self.queries(second), keys[0], snapshot, direction=1),
        ]
        loss = fn.mean_of(losses)
        signals = {"health/std": fn.embedding_std(keys[0])}
        chosen = (snapshot["slots"] >= 0).float().mean()
        return Output(
            loss,
            detached(relative=loss, retrieved=chosen) | signals,
            Push(keys=torch.stack(keys), index=batch.index),
        )

    def loss(self, queries: Tensor, own_key: Tensor, snapshot: Snapshot, *, direction: int) -> Tensor:
        """Eq. 2 for queries (H, b, D) of one view and the keys ẑ' (b, D) of the other."""
        device = queries.device
        queue, empty = snapshot["features"], snapshot["index"] < 0
        slots = snapshot["slots"][:, direction].T  # (J, b)
        same = snapshot["same"][:, direction].permute(1, 2, 0)  # (J, H, b)
        if self.config.key == "nearest":
            nearest = fn.products(own_key, queue).masked_fill(empty, -2).argmax(dim=1)
            slots = torch.where(empty.all(), torch.full_like(nearest, -1), nearest)[None]
        key = torch.where(slots[..., None] >= 0, queue[slots.clamp(min=0)], own_key)  # (J, b, D)
        left_out = None
        if self.config.dedupe:
            taken = torch.zeros(len(own_key), len(queue) + 1, dtype=torch.bool, device=device)
            taken.scatter_(1, torch.where(slots >= 0, slots, len(queue)).T, True)  # a column for "none"
            left_out = taken[:, :-1]
        same = same.expand(-1, len(queries), -1)
        return fn.relative_contrastive_loss(
            queries, key, queue, same, tau=self.config.tau, negatives_mask=left_out
        )

    def schedule(self, progress: Progress) -> dict[str, float]:
        return {"momentum": momentum_at(self.config.momentum, self.config.momentum_schedule, progress)}

    def after_step(self, progress: Moment) -> None:
        student = nn.Sequential(self.encoder, self.projector)
        self.teacher.follow(student, self.scheduled(progress)["momentum"])
