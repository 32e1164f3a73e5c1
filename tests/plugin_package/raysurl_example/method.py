"""Two views of an image are pulled together, and away from the keys of a queue that this package keeps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raysurl import functional as fn
from raysurl import streams
from raysurl.memory.base import Memory
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


class Remembered(Memory):
    """The latest keys, and in answer to a batch which of them each of its samples looks at."""

    answers: ClassVar[bool] = True

    def __init__(self, size: int, dim: int, seed: int) -> None:
        start = torch.randn(size, dim, generator=streams.torch_stream(seed, "remembered"))
        self.keys, self.seed, self.at = F.normalize(start, dim=1), seed, 0

    def push(self, keys: Tensor, index: Tensor) -> None:
        rows = (self.at + torch.arange(len(keys))) % len(self.keys)
        self.keys[rows.to(self.keys.device)] = keys
        self.at = int(self.at + len(keys)) % len(self.keys)

    def snapshot(self) -> Snapshot:
        return {"keys": self.keys}

    def mirror(self, device: torch.device) -> Memory:
        twin = Remembered(len(self.keys), self.keys.shape[1], self.seed)
        twin.keys, twin.at = self.keys.clone().to(device), self.at
        return twin

    def answer(self, index: Tensor, step: int) -> dict[str, Tensor]:
        picks = streams.torch_stream(self.seed, "looks", step)
        return {"looks": torch.randint(len(self.keys), (len(index), 4), generator=picks)}

    def state_dict(self) -> dict[str, Any]:
        return {"keys": self.keys.clone(), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keys, self.at = state["keys"].clone(), int(state["at"])


class Pulled(Method):
    class Config(MethodConfig):
        dim: int = Field(8, ge=2)  # of the embedding
        queue_size: int = Field(32, ge=8)  # keys that are kept
        weight: float = Field(0.5, ge=0)  # of the push away from them

        def views(self) -> dict[str, str]:
            return {"one": "digits", "two": "one"}

        def remembers(self) -> type[Remembered]:
            return Remembered

        def memory(self, num_samples: int, seed: int) -> Remembered:
            return Remembered(self.queue_size, self.dim, seed)

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config, self.encoder = config, build.encoder
        self.head = nn.Linear(build.dim, config.dim)

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        one, two = (
            F.normalize(self.head(self.encoder(batch.views[v])).float(), dim=1) for v in ("one", "two")
        )
        pull = -fn.mean_cosine(one, two)
        away = (one[:, None] * snapshot["keys"][snapshot["looks"]]).sum(2).square().mean()
        loss = pull + self.scheduled(progress)["weight"] * away
        return Output(loss, detached(pull=pull, away=away), Push(two.detach()[None], batch.index))

    def schedule(self, progress: Progress) -> dict[str, float]:
        return {"weight": self.config.weight}
