"""Linear probes as the papers train them: `eval.probe=NAME`, changed by the `eval.linear_…` settings.

Each paper's sentence, and what it leaves open, is in docs/protocols.md. A probe with `augment` sees another view of
each train image in each epoch: a policy of raysurl.views, or `views` for the first of the recipe's own that crops at
random. Test images are never augmented. A rate of 10 or 30 is for short features: a probe with `unit_length` divides
them all by their mean length, so that its rate does not depend on the encoder that made them. Several rates or decays
are trained together, and the best on a held-out tenth of the train images is the one that is tested.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysurl.recipe.schema import Section
from raysurl.views.policies import Positive

Decay = Annotated[float, Field(ge=0)]


class Probe(Section):
    """How linear classifiers are trained on frozen features."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1)
    optimizer: Literal["sgd", "adam", "lars"] = "sgd"
    lr: tuple[Positive, ...] = Field((0.1,), min_length=1)
    lr_batch: int = Field(0, ge=0)  # lr is for this batch size; 0: as it is
    weight_decay: tuple[Decay, ...] = Field((0.0,), min_length=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["step", "cosine", "constant"] = "step"  # ×0.1 after 60 % and 80 % of the epochs
    augment: str | None = None
    unit_length: bool = False  # features are divided by the mean length of the train features

    def words(self) -> str:
        """The settings, in the words of the papers."""
        lr = " or ".join(f"{value:g}" for value in self.lr)
        scaled = f" · {self.batch_size}/{self.lr_batch}" if self.lr_batch else ""
        momentum = f"{'Nesterov ' if self.nesterov else ''}momentum {self.momentum:g}"
        decay = " or ".join(f"{value:g}" for value in self.weight_decay)
        parts = [
            f"{self.epochs} epochs of batches of {self.batch_size}",
            f"{self.optimizer.upper() if self.optimizer != 'adam' else 'Adam'}, rate {lr}{scaled}",
            *([momentum] if self.optimizer != "adam" else []),
            {"step": "×0.1 after 60 % and 80 %", "cosine": "cosine by step", "constant": "constant"}[
                self.schedule
            ],
            f"decay {decay}",
            _SEEN.get(self.augment or "", f"views of the policy {self.augment}"),
            *(["features of mean length 1"] if self.unit_length else []),
        ]
        return "; ".join(parts)


_SEEN = {"": "centre crops", "views": "the run's own views", "linear": "random resized crop of 8 % and more, flip",
         "weak": "random resized crop of 20 % and more, flip"}  # fmt: skip


PROBES: dict[str, Probe] = {
    "ressl": Probe(lr=(10.0,), unit_length=True),
    "ressl_imagenet": Probe(
        epochs=90, lr=(0.1,), lr_batch=256, nesterov=True, schedule="cosine", augment="linear"
    ),
    "ressl_conference": Probe(lr=(0.3,), schedule="cosine", augment="linear"),
    "rcl": Probe(
        epochs=90, batch_size=4096, optimizer="lars", lr=(1.0,), nesterov=True, schedule="cosine", augment="linear"
    ),
    "mvmr": Probe(optimizer="adam", lr=(1e-4,), schedule="constant", augment="views"),
    "genurl_stl10": Probe(lr=(1.0,), augment="weak"),
    "genurl_cifar100": Probe(lr=(1.0,), augment="weak"),
    "genurl_cifar10": Probe(lr=(0.1,), augment="weak"),
    "genurl_tiny": Probe(lr=(0.1,), augment="weak"),
    "genurl_imagenet": Probe(lr=(30.0,), augment="weak", unit_length=True),
}  # fmt: skip
