"""Neighbourhoods of a bank: which samples are anchors, who their neighbours are, and the memory that tells a step.

Letters: N samples, D embedding, B global batch, M anchors, k neighbours of an anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysurl.errors import InputError
from raysurl.memory import Bank
from raysurl.memory.base import Memory
from raysurl.method import Answer, Progress, Snapshot

INSTANCE = -1  # in place of a neighbour: the sample is no anchor
CONSISTENCY = "health/neighbour_consistency"
BLOCK = {
    "cpu": (256, 4096),
    "cuda": (4096, 32768),
}  # similarities at once: what a core's cache holds; 512 MiB


@torch.no_grad()
def discover(
    memory: Tensor, *, tau: float, fraction: float, num_neighbours: int, block: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """The samples in the sparsest neighbourhoods and their nearest others: Super-AND eqs. 7-9.

    `memory` (N, D). Returns anchors (M,) int64, the ⌊N·fraction⌋ samples whose softmax of similarities over all N
    (their own included) at temperature `tau` has the lowest entropy, ascending, and neighbours (M, num_neighbours)
    int64, the most similar other samples, nearest first. Exact on any device: O(N²·D) time and never more than
    rows × columns similarities at once, `block`. Raises InputError for rows that are not finite or too few samples.
    """
    if memory.dim() != 2 or not torch.isfinite(memory).all():
        raise InputError(
            f"neighbours are found among finite rows (N, D), not in {tuple(memory.shape)} with others"
        )
    check_neighbours(num_neighbours, len(memory))
    if not 0 <= fraction <= 1 or tau <= 0:
        raise InputError(f"discovery needs a fraction in [0, 1] and tau > 0, got {fraction} and {tau}")
    memory = memory.float()
    rows, columns = block or BLOCK.get(memory.device.type, BLOCK["cpu"])
    entropy, nearest = zip(
        *(
            _of_block(memory, start, rows, columns, tau, num_neighbours)
            for start in range(0, len(memory), rows)
        ),
        strict=True,
    )
    count = int(len(memory) * fraction + 1e-6)  # a fraction such as 0.2 × 3 may lie just below its value
    anchors = torch.argsort(torch.cat(entropy), stable=True)[:count]
    return anchors, torch.cat(nearest)[anchors]


def _of_block(
    memory: Tensor, start: int, rows: int, columns: int, tau: float, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    """Entropy (rows,) fp64 and nearest others (rows, num_neighbours) of the samples from `start` on.

    With logits s and their running maximum m: Z = Σ e^(s−m), W = Σ (s−m)·e^(s−m), entropy = log Z − W/Z.
    """
    queries = memory[start : start + rows]
    highest = queries.new_full((len(queries), 1), -torch.inf)
    z = w = highest.new_zeros(highest.shape, dtype=torch.float64)
    best = queries.new_full((len(queries), num_neighbours), -torch.inf)
    found = torch.full_like(best, INSTANCE, dtype=torch.int64)
    for first in range(0, len(memory), columns):
        logits = (queries @ memory[first : first + columns].T).div_(tau)
        higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        shift = (highest - higher).double()  # −∞ in the first block, where Z and W are still 0
        shrink = shift.exp()
        w = shrink * (w + z * shift.nan_to_num(neginf=0.0))
        z, highest = shrink * z, higher
        away = logits - higher
        share = away.exp()
        z = z + share.sum(dim=1, keepdim=True)
        w = w + away.mul_(share).sum(dim=1, keepdim=True)

        own = torch.arange(start, start + len(queries), device=memory.device) - first
        inside = (own >= 0) & (own < logits.shape[1])
        logits[inside, own[inside]] = -torch.inf
        near, position = logits.topk(min(num_neighbours, logits.shape[1]), dim=1)
        best, order = torch.cat([best, near], dim=1).topk(num_neighbours, dim=1)
        found = torch.cat([found, position + first], dim=1).gather(1, order)
    return (z.log() - w / z)[:, 0], found


def check_neighbours(num_neighbours: int, num_samples: int) -> None:
    """Raises InputError unless each of the samples has so many others."""
    if not 1 <= num_neighbours < num_samples:
        raise InputError(
            f"num_neighbours={num_neighbours} must be between 1 and {num_samples - 1}, the other samples that each"
            f" of {num_samples} has"
        )


class NeighbourBank(Memory):
    """A bank with a vector per sample, and the neighbours of its anchors as the last `refresh` found them.

    `neighbours` (N, k) int64 sample indices; the row of a sample that is no anchor holds INSTANCE. `fraction` gives
    the share of anchors at a point of the run. Neighbours are sought in the bank, or in the features that `refresh`
    is given where `from_features`; before the first step the bank is noise, so features that are given are used then.
    Samples that no step has had yet (those that cannot be read, for one) are neither anchors nor neighbours: their
    random rows lie far from all others and would pass for the sparsest.
    """

    answers: ClassVar[bool] = True
    per_sample: ClassVar[bool] = True

    def __init__(
        self, bank: Bank, *, num_neighbours: int, fraction: Callable[[Progress], float], from_features: bool
    ) -> None:
        check_neighbours(num_neighbours, len(bank.features))
        self.bank, self.fraction, self.from_features = bank, fraction, from_features
        self.neighbours = torch.full((len(bank.features), num_neighbours), INSTANCE)
        self.seen = torch.zeros(len(bank.features), dtype=torch.bool)

    def push(self, keys: Tensor, index: Tensor) -> None:
        self.bank.update(index, keys)
        self.seen[index] = True

    def refresh(self, features: Tensor | None, progress: Progress) -> None:
        rows = self.bank.features
        if features is not None and (self.from_features or progress.step == 0):
            rows = F.normalize(features, dim=1)
        samples = torch.nonzero(self.seen)[:, 0] if self.seen.any() else torch.arange(len(rows))
        anchors, neighbours = discover(
            rows[samples],
            tau=self.bank.tau,
            fraction=self.fraction(progress),
            num_neighbours=self.neighbours.shape[1],
        )
        self.neighbours.fill_(INSTANCE)
        self.neighbours[samples[anchors]] = samples[neighbours]

    def answer(self, index: Tensor, step: int) -> Answer:
        """`neighbours` (B, k) int64 of the samples `index` (B,)."""
        return {"neighbours": self.neighbours[index]}

    def health(self, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """Share of neighbours with their anchor's label (paper, Fig. 4); empty without anchors or labels."""
        anchors = torch.nonzero(self.neighbours[:, 0] != INSTANCE)[:, 0]
        if labels is None or not len(anchors):
            return {}
        known = torch.from_numpy(labels)
        pairs = torch.stack(
            [known[anchors, None].expand_as(self.neighbours[anchors]), known[self.neighbours[anchors]]]
        )
        pairs = pairs[:, (pairs >= 0).all(dim=0)]
        if not pairs.shape[1]:
            return {}
        return {CONSISTENCY: float((pairs[0] == pairs[1]).double().mean())}

    def snapshot(self) -> Snapshot:
        return self.bank.snapshot()

    def mirror(self, device: torch.device) -> Memory:
        return self.bank.mirror(device)

    def state_dict(self) -> dict[str, Any]:
        state = {"neighbours": self.neighbours.clone(), "seen": self.seen.clone()}
        return {"bank": self.bank.state_dict(), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["neighbours"].shape != self.neighbours.shape:
            raise InputError(
                f"the stored neighbours are {tuple(state['neighbours'].shape)}, this run's"
                f" {tuple(self.neighbours.shape)}"
            )
        self.bank.load_state_dict(state["bank"])
        self.neighbours.copy_(state["neighbours"])
        self.seen.copy_(state["seen"])
