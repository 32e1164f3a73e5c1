"""CRD (Tian, Krishnan, Isola, ICLR 2020): which student's and teacher's embeddings are of the same sample?

g_S, g_T: a linear layer on each, unit rows of one width      `neck`, `teacher_neck`; both are trained
h(T, S) = e^{g_T·g_S/τ} / (e^{g_T·g_S/τ} + N/M)                 `critic_loss`; N negatives, M samples
L = −E[log h of a pair] − N E[log(1 − h) of other pairs]        the same, mean over the batch
both ways: the student's row against a bank of g_T and the teacher's against one of g_S, added

Defaults of the paper: width 128, N = 16,384, τ = 0.07, bank momentum 0.5. Without labels all other samples are
negatives. Deviations and choices: e^{·/τ} is divided by its mean over the negatives of its row, without gradient, as
the authors' code divides by that of the first batch (`normalise: paper` leaves it out: at N/M < 1 the loss is then
of the order of N); one draw of N negatives serves the whole batch, the sample itself left out, where the authors
draw for each row; the pair's own rows are those of this step, not of the bank.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raysurl import functional as fn
from raysurl import streams
from raysurl.memory import Bank
from raysurl.method import Batch, Build, Moment, Output, Progress, Push, Snapshot, detached
from raysurl.teachers.distillation import Distilled, DistilledConfig
from raysurl.views.colour import to_device


class PairBank(Bank):
    """Rows 0 … N−1 the teacher's, N … 2N−1 the student's of the same samples; pushed as two views."""

    def push(self, keys: Tensor, index: Tensor) -> None:
        second = torch.arange(2, device=index.device).repeat_interleave(len(index) // 2)
        self.update(index + second * (len(self.features) // 2), keys)

    def mirror(self, device: torch.device) -> PairBank:
        copy = PairBank(2, self.features.shape[1], momentum=self.momentum, tau=self.tau)
        copy.features = self.features.to(device, copy=True)
        return copy


class CRD(Distilled):
    class Config(DistilledConfig):
        neck: Literal[False] = False  # the paper's linear layers are `dim` wide
        negatives: int = Field(16384, ge=1)  # other samples that each is compared with
        tau: float = Field(0.07, gt=0)  # temperature of the critic
        momentum: float = Field(0.5, ge=0, lt=1)  # with which memory's vectors follow
        normalise: Literal["negatives", "paper"] = "negatives"  # by what the critic's output is divided

        def remembers(self) -> type[PairBank]:
            return PairBank

        def memory(self, num_samples: int, seed: int) -> PairBank:
            return PairBank(2 * num_samples, self.dim, momentum=self.momentum, tau=self.tau, seed=seed)

    config: Config

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        self.neck = nn.Linear(build.dim, config.dim)
        self.teacher_neck = nn.Linear(self.frozen.dim, config.dim)

    def runs_eagerly(self) -> str | None:
        return "crd draws each step's negatives on the host"

    def distil(self, h: Tensor, t: Tensor, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        student, teacher = F.normalize(h, dim=1), F.normalize(self.teacher_neck(t).float(), dim=1)
        assert isinstance(progress, Progress)  # see `runs_eagerly`
        samples = len(snapshot["features"]) // 2
        of_teacher, of_student = snapshot["features"].split(samples)
        drawn = to_device(negatives(self.config.negatives, samples, progress), batch.index.device)
        left_out = drawn == batch.index[:, None]  # (b, N)
        own = (student * teacher).sum(dim=1, keepdim=True)
        terms = [
            critic_loss(torch.cat([own, fn.products(row, bank[drawn])], dim=1) / self.config.tau, left_out,
                        samples=samples, normalise=self.config.normalise == "negatives")
            for row, bank in ((student, of_teacher), (teacher, of_student))
        ]  # fmt: skip
        logs = detached(student_anchor=terms[0], teacher_anchor=terms[1], pair_cosine=own.mean())
        keys = torch.stack([teacher, student]).detach()
        return Output(terms[0] + terms[1], logs, Push(keys=keys, index=batch.index))


def critic_loss(logits: Tensor, left_out: Tensor, *, samples: int, normalise: bool) -> Tensor:
    """−log h − Σ_j log(1 − h_j), mean over rows, of logits (b, 1 + N): the pair's, then the negatives'.

    `left_out` (b, N) bool: True = no negative of this row. `samples` is M.
    """
    counted = torch.cat([torch.ones_like(left_out[:, :1]), ~left_out], dim=1)
    if normalise:
        negative = logits[:, 1:].detach().masked_fill(left_out, -torch.inf)
        mean = negative.logsumexp(dim=1) - (~left_out).sum(dim=1).clamp(min=1).log()
        logits = logits - (mean.nan_to_num(neginf=0.0) + math.log(samples))[:, None]
    log_noise = math.log(left_out.shape[1] / samples)
    log_h, log_rest = F.logsigmoid(logits - log_noise), F.logsigmoid(log_noise - logits)
    return -(log_h[:, 0] + (log_rest * counted)[:, 1:].sum(dim=1)).mean()


def negatives(count: int, samples: int, progress: Progress) -> Tensor:
    """Sample indices (N,), drawn with replacement, of this step."""
    generator = streams.torch_stream(progress.seed, "negatives", progress.step)
    return torch.randint(samples, (count,), generator=generator)
