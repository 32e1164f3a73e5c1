"""Fine-tuning as the papers do it: `eval.finetune=NAME`, or several, changed by the `eval.finetune_…` settings.

Each paper's sentence, and what it leaves open, is in docs/protocols.md. Where there are several rates, each pair of a
rate and a factor of the classifier's is trained on nine tenths of the labelled samples; the pair that is best on the
last tenth is trained again on all of them, and tested.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysurl.recipe.probes import Decay
from raysurl.recipe.schema import Section
from raysurl.views.policies import Positive


class Tuning(Section):
    """How an encoder and a linear classifier on it are trained on labels."""

    share: float = Field(1.0, gt=0, le=1)  # of the labels: a draw with as many of each class, or one at least
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(256, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: tuple[Positive, ...] = Field((0.01,), min_length=1)  # of the encoder
    head_times: tuple[Positive, ...] = Field((1.0,), min_length=1)  # the classifier's rate, in times of lr
    lr_batch: int = Field(0, ge=0)  # lr is for this batch size; 0: as it is
    weight_decay: Decay = 0.0
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["step", "cosine", "constant"] = "cosine"  # step: ×0.1 after 60 % and 80 % of the epochs
    warmup_epochs: float = Field(0, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)  # of the rate, from each block to the one below it
    frozen: bool = False  # the encoder stays as it is, its batch norms too
    augment: str = (
        "linear"  # a policy of raysurl.views; views: the first of the run's own that crops at random
    )

    @property
    def percent(self) -> str:
        """`10` for a tenth of the labels, nothing for all: what metrics are called by."""
        return "" if self.share == 1 else f"{100 * self.share:g}"

    def words(self) -> str:
        """The settings, in the words of the papers."""
        lr = " or ".join(f"{value:g}" for value in self.lr)
        scaled = f" · {self.batch_size}/{self.lr_batch}" if self.lr_batch else ""
        times = " or ".join(f"{value:g}" for value in self.head_times)
        names = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
        momentum = f"{'Nesterov ' if self.nesterov else ''}momentum {self.momentum:g}"
        warm = f"{self.warmup_epochs:g} epochs of warm-up"
        shape = {"step": "×0.1 after 60 % and 80 %", "cosine": "cosine by step", "constant": "constant"}
        parts = [
            f"{100 * self.share:g} % of the labels",
            "the classifier alone" if self.frozen else "all layers",
            f"{self.epochs} epochs of batches of {self.batch_size}",
            f"{names[self.optimizer]}, rate {lr}{scaled}",
            *([] if self.head_times == (1.0,) else [f"the classifier's {times} times that"]),
            *([momentum] if self.optimizer == "sgd" else []),
            shape[self.schedule],
            *([warm] if self.warmup_epochs else []),
            *([f"{self.layer_decay:g} of the rate from block to block"] if self.layer_decay < 1 else []),
            f"decay {self.weight_decay:g}",
        ]
        return "; ".join(parts)


TUNINGS: dict[str, Tuning] = {
    "full": Tuning(head_times=(10.0,), weight_decay=1e-4),
    "vit": Tuning(
        epochs=100, optimizer="adamw", lr=(5e-4,), lr_batch=256, weight_decay=0.05, warmup_epochs=5, layer_decay=0.65
    ),
    "ressl_1": Tuning(share=0.01, epochs=60, lr=(0.1,), frozen=True),
    "ressl_10": Tuning(share=0.1, epochs=20, lr=(0.02,), head_times=(10.0,)),
    "rcl_1": Tuning(share=0.01, epochs=60, lr=(0.02, 0.05, 0.1), lr_batch=256, nesterov=True, schedule="constant"),
    "rcl_10": Tuning(share=0.1, epochs=30, lr=(0.02, 0.05, 0.1), lr_batch=256, nesterov=True, schedule="constant"),
    "mvmr_1": Tuning(share=0.01, epochs=100, batch_size=128, optimizer="adam", lr=(1e-4,), augment="views"),
    "mvmr_10": Tuning(share=0.1, epochs=100, batch_size=128, optimizer="adam", lr=(1e-4,), augment="views"),
    "genurl_stl10": Tuning(
        lr=(0.1, 0.01, 0.001), head_times=(1.0, 10.0, 100.0), weight_decay=1e-4, schedule="step", augment="weak"
    ),
}  # fmt: skip
