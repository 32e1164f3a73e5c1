"""Super-AND: a holistic approach to unsupervised embedding learning (2019), and its parents by recipe.

p_i = softmax(v_i·M/τ), eq. 1          `logits`: M (N, D) has an entry per sample, own code's τ = 0.1
r_i = v_i·M / ‖v_i·M‖, eq. 2           inside `augmentation_loss`; the paper writes m_i for M
L_and, eq. 10                          `neighbourhood_loss`, of neighbours that memory names for the batch
L_ue, eqs. 11-12                       `unification_entropy`
L_aug, eqs. 13-14                      `augmentation_loss`
L_and + w(t)·L_ue + L_aug, eq. 6       `losses`; w(t) grows by a step at 0.4 and 0.8 of each round (`weight`)
N of eqs. 7-9, Algorithm 1             superand.memory, before each round; the share of anchors is `fraction`

Where paper and authors' code differ this is the code: +H in L_ue (eq. 12's sign would raise the entropy that the text
lowers); p_ii counts beside the neighbours in eq. 10; L_aug is symmetric over the 2B views, without the pair (i, i),
with no gradient into the second factor; all terms are means over 2B rows; anchors are 0, 25, … 100 % of the samples
over five rounds, found in memory; both views are augmentations and pass the network as one batch, with one set of
batch-norm statistics; the recipes decay all parameters. Deviations from the code: the own class leaves eq. 11 exactly
(`own_class=fill`: its logit becomes −1/τ); the second view alone writes memory, which on a CPU the code does by the
order of its writes (`remember=mean`: the mean of both).
Table 5, `init`: `full` all losses in round 0 (the code); `instance` the instance loss alone in round 0; `random`
anchors from round 0 on, 20, … 100 %, the first found by the untrained network.
NPID (Wu et al. 2018): L_and of one view, in one round. AND (Huang et al. 2019): L_and of one view. ISIF (Ye et al.
2019): L_aug of the embeddings themselves (`compare=embeddings`).

Letters: B global batch, b this device's part, N samples, D embedding, k neighbours, V views; 2b rows are view 1, then
view 2.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from raysurl import distributed
from raysurl import functional as fn
from raysurl.errors import InputError
from raysurl.memory import Bank
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
from raysurl.methods.superand.memory import INSTANCE, NeighbourBank, discover
from raysurl.recipe.method_config import Refresh

Share = Annotated[float, Field(ge=0, le=1)]

__all__ = ["SuperAND", "and_loss", "augmentation_loss", "discover", "unification_entropy"]


class SuperAND(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        dim: int = Field(128, ge=1)
        num_views: Literal[1, 2] = 2  # of a sample in a step; L_aug needs two
        tau: float = Field(0.1, gt=0)
        memory_momentum: float = Field(0.5, ge=0, le=1)  # with which memory's vectors follow
        remember: Literal["second", "mean"] = "second"  # which view's embedding updates memory
        num_neighbours: int = Field(1, ge=1)  # of each anchor
        init: Literal["full", "instance", "random"] = "full"  # what the first round trains on
        discover_from: Literal["memory", "encoder"] = "memory"  # where neighbourhoods are looked for
        and_loss: bool = True  # the neighbourhood loss
        unification: bool = True  # the unification entropy loss
        unification_step: float = Field(0.2, ge=0)  # w(t) grows by this
        unification_milestones: tuple[Share, ...] = (0.4, 0.8)  # at these fractions of a round
        own_class: Literal["exclude", "fill"] = "exclude"  # how eq. 11 leaves out the own class
        aug_loss: bool = Field(True, validate_default=True)  # the augmentation loss
        aug_tau: float = Field(0.1, gt=0)  # temperature of the augmentation loss
        negative_weight: float = Field(1.0, ge=1)  # of its negatives
        compare: Literal["relations", "embeddings"] = "relations"  # what L_aug compares: r (eq. 2) or v

        @field_validator("aug_loss")
        @classmethod
        def _some_loss(cls, value: bool, info: ValidationInfo) -> bool:
            if not (value or info.data.get("and_loss", True)):
                raise ValueError("with and_loss=false as well, the unification entropy alone would collapse")
            if value and info.data.get("num_views") == 1:
                raise ValueError("it compares two views, and num_views=1; set aug_loss=false too")
            return value

        def fraction(self, progress: Progress) -> float:
            """Share of the samples that are anchors in a round."""
            if self.init == "random":
                return (progress.round + 1) / progress.rounds
            return progress.round / max(progress.rounds - 1, 1)

        def views(self) -> dict[str, str]:
            return {"view_1": "superand"} | ({"view_2": "view_1"} if self.num_views == 2 else {})

        def remembers(self) -> type[NeighbourBank]:
            return NeighbourBank

        def memory(self, num_samples: int, seed: int) -> NeighbourBank:
            bank = Bank(num_samples, self.dim, momentum=self.memory_momentum, tau=self.tau, seed=seed)
            return NeighbourBank(
                bank,
                num_neighbours=self.num_neighbours,
                fraction=self.fraction,
                from_features=self.discover_from == "encoder",
            )

        def refresh(self, progress: Progress) -> Refresh:
            """Before each round that has anchors; memory that is still noise cannot say what is near."""
            if not self.and_loss or progress.step_in_round or not self.fraction(progress):
                return "no"
            return "features" if self.discover_from == "encoder" or self.init == "random" else "itself"

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.head = nn.Linear(build.dim, config.dim)

    @property
    def embedder(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    def embed(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> unit rows v (b, D)."""
        return F.normalize(self.head(self.encoder(x)).float(), dim=1)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        images = torch.cat([batch.views[name] for name in self.config.views()])
        v = self.embed(images).unflatten(0, (self.config.num_views, -1))  # (V, b, D)
        with torch.autocast(v.device.type, enabled=False):
            loss, logs = self.losses(v, batch.index, snapshot, progress)
        logs["health/std"] = fn.embedding_std(v[0])
        remembered = v[-1] if self.config.remember == "second" else v.mean(dim=0)
        return Output(loss, logs, Push(keys=remembered.detach()[None], index=batch.index))

    def losses(
        self, v: Tensor, index: Tensor, snapshot: Snapshot, progress: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 6 for the embeddings v (V, b, D) of the samples `index` (b,)."""
        c, bank = self.config, snapshot["features"]
        neighbours = snapshot["neighbours"]
        logits = v.flatten(0, 1) @ bank.T / c.tau
        instance_only = self.in_phase(progress)
        logs = {"anchors": (neighbours[:, 0] != INSTANCE).float().mean()}
        loss = logits.new_zeros(())
        if c.and_loss or instance_only:
            neighbourhood = neighbourhood_loss(logits, index, neighbours)
            loss, logs["neighbourhood"] = loss + neighbourhood, neighbourhood
        if c.unification and not instance_only:
            unification = unification_entropy(
                logits, index, fill=-1 / c.tau if c.own_class == "fill" else None
            )
            loss, logs["unification"] = loss + self.scheduled(progress)["weight"] * unification, unification
        if c.aug_loss and not instance_only:
            augmentation = self.augmentation(v, logits, bank)
            loss, logs["augmentation"] = loss + augmentation, augmentation
        return loss, detached(**logs)

    def augmentation(self, v: Tensor, logits: Tensor, bank: Tensor) -> Tensor:
        """L_aug of this device's rows against those of the whole global batch."""
        c, whole = self.config, distributed.gather(v.detach().transpose(0, 1)).transpose(0, 1).flatten(0, 1)
        rows, everyone = v.flatten(0, 1), whole
        if c.compare == "relations":
            rows, everyone = logits, logits.detach() if len(whole) == len(logits) else whole @ bank.T
        return augmentation_loss(
            rows,
            tau=c.aug_tau,
            negative_weight=c.negative_weight,
            everyone=everyone,
            own=distributed.own_rows(v[0]),
        )

    def schedule(self, progress: Progress) -> dict[str, float]:
        return {"weight": self.weight(progress)}

    def phase(self, progress: Progress) -> bool:
        """Whether the instance loss stands alone."""
        return bool(self.config.init == "instance" and progress.round == 0)

    def weight(self, progress: Progress) -> float:
        """w(t) of eq. 6: 0, then a step more at each milestone of the round."""
        c, total = self.config, progress.steps_per_round
        return c.unification_step * sum(progress.step_in_round >= m * total for m in c.unification_milestones)


# -------------------------------------------------------------------- the three terms


def and_loss(logits: Tensor, index: Tensor, anchors: Tensor, neighbours: Tensor) -> Tensor:
    """Eq. 10: logits (2B, N), own columns `index` (B,), `anchors` (M,) with `neighbours` (M, k) -> scalar."""
    table = torch.full((logits.shape[1], max(neighbours.shape[-1], 1)), INSTANCE, device=logits.device)
    if len(anchors):
        table[anchors] = neighbours
    return neighbourhood_loss(logits, index, table[index])


def neighbourhood_loss(logits: Tensor, index: Tensor, neighbours: Tensor) -> Tensor:
    """Eq. 10 with a row of `neighbours` (B, k) per sample, INSTANCE where there is none; mean over the V·B rows.

    −log(p_ii + Σ_j p_ij) over an anchor's neighbours j; −log p_ii for the others.
    """
    own, absent = index[:, None], neighbours == INSTANCE
    columns = torch.cat([own, torch.where(absent, own, neighbours)], dim=1)
    absent = torch.cat([torch.zeros_like(own, dtype=torch.bool), absent], dim=1)
    views = len(logits) // len(index)
    columns, absent = columns.repeat(views, 1), absent.repeat(views, 1)
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, columns)
    return -torch.logsumexp(log_p.masked_fill(absent, -torch.inf), dim=1).mean()


def unification_entropy(logits: Tensor, index: Tensor, *, fill: float | None = None) -> Tensor:
    """Eqs. 11-12: entropy of softmax(logits (V·B, N)) without each row's own class `index` (B,), mean over rows.

    With `fill` the own logit is set to that value instead, as the authors' code does (−10). Raises InputError for
    N = 1, where nothing is left.
    """
    if logits.shape[1] < 2:
        raise InputError("the unification entropy needs at least two samples")
    own = index.repeat(len(logits) // len(index))[:, None]
    log_p = F.log_softmax(logits.float().scatter(1, own, -torch.inf if fill is None else fill), dim=1)
    p = log_p.exp()
    return -(p * (log_p.scatter(1, own, 0.0) if fill is None else log_p)).sum(dim=1).mean()


def augmentation_loss(
    logits: Tensor,
    *,
    tau: float,
    negative_weight: float = 1.0,
    everyone: Tensor | None = None,
    own: Tensor | None = None,
) -> Tensor:
    """Eqs. 13-14 over rows R = logits / ‖logits‖ (2b, N): −[log P_i,i⁺ + w·Σ_{j≠i,i⁺} log(1 − P_ij)], mean over rows.

    P_ij ∝ exp(R_i·sg(R_j)/τ) over j ≠ i, i⁺ the other view of i; negatives count w = `negative_weight` ≥ 1 times in
    the sum that divides. On several devices `everyone` (2B, N) are the rows of the global batch, among whose B samples
    this device's stand at `own` (b,).
    """
    r = F.normalize(logits.float(), dim=1)
    all_r = r.detach() if everyone is None else F.normalize(everyone.detach().float(), dim=1)
    batch = len(all_r) // 2
    at = torch.arange(len(r) // 2, device=r.device) if own is None else own
    same = torch.cat([at, at + batch])[:, None]
    other = (same + batch) % (2 * batch)

    log_s = r @ all_r.T / tau
    weight = torch.full_like(log_s, negative_weight).scatter(1, other, 1.0)
    log_s = (log_s + weight.log()).scatter(1, same, -torch.inf)  # now with its weight
    s = (log_s - log_s.detach().amax(dim=1, keepdim=True)).exp()
    total = s.sum(dim=1, keepdim=True)
    top = s.argmax(dim=1, keepdim=True)  # for it alone 1 − P may lose all digits, so the others are added up
    without = (total - s).scatter(1, top, s.scatter(1, top, 0.0).sum(dim=1, keepdim=True))
    log_not = ((without + (1 - 1 / weight) * s) / total).clamp_min(torch.finfo(s.dtype).tiny).log()
    log_positive = log_s.gather(1, other) - log_s.logsumexp(dim=1, keepdim=True)
    negatives = log_not.scatter(1, same, 0.0).scatter(1, other, 0.0).sum(dim=1, keepdim=True)
    return -(log_positive + negative_weight * negatives).mean()
