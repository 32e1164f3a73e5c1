"""Linear probes as the papers train them: `eval.probe=NAME`, changed by the `eval.linear_…` settings.

Each is the paper's sentence, and what the sentence leaves open as its code has it, or in [brackets] as we chose. A
probe with `augment` sees another view of each train image in each epoch: a policy of raysurl.views, or `views` for the
first of the recipe's own. Test images are never augmented. Several rates or decays are trained together, and the best
on a held-out tenth of the train images is the one that is tested.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysurl.recipe.schema import Section

Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


class Probe(Section):
    """How linear classifiers are trained on frozen features."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1)
    optimizer: Literal["sgd", "adam", "lars"] = "sgd"
    lr: tuple[Positive, ...] = Field((0.1,), min_length=1)
    lr_batch: int = Field(0, ge=0)  # lr is for this batch size; 0: as it is
    weight_decay: tuple[Decay, ...] = Field((0.0,), min_length=1)
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["step", "cosine", "constant"] = "step"  # ×0.1 after 60 % and 80 % of the epochs
    augment: str | None = None


PROBES: dict[str, Probe] = {
    # ReSSL, V-A: "100 epochs … learning rate of 10, no weight decay, and momentum of 0.9 … times 0.1 in 60 and 80
    # epochs" [batch 256, cached centre crops].
    "ressl": Probe(lr=(10.0,)),
    # ReSSL, V-C: "90 epochs using a SGD optimizer with a Nesterov momentum value of 0.9, weight decay of 0, learning
    # rate with 0.1 * BatchSize/256, and a cosine-annealed learning rate" [batch 256; crop and flip, as SimCLR's].
    "ressl_imagenet": Probe(
        epochs=90, lr=(0.1,), lr_batch=256, nesterov=True, schedule="cosine", augment="linear"
    ),
    # ReSSL's code of the conference version: lr .3, 100 epochs, SGD without Nesterov, cosine by step, batch 256.
    "ressl_conference": Probe(lr=(0.3,), schedule="cosine", augment="linear"),
    # RCL, 5.2: "90 epochs … using LARS with cosine annealed learning rate of 1 with Nesterov momentum of 0.9 and batch
    # size of 4096" [crop and flip, the standard protocol].
    "rcl": Probe(
        epochs=90, batch_size=4096, optimizer="lars", lr=(1.0,), nesterov=True, schedule="cosine", augment="linear"
    ),
    # MV-MR, supplement: "a single-layer linear model for 100 epochs with a batch size 256, learning rate 1e-4, and Adam
    # optimizer"; its code augments as in training. (The code's rate is 1e-3 with a cosine.)
    "mvmr": Probe(optimizer="adam", lr=(1e-4,), schedule="constant", augment="views"),
    # GenURL, V-B: "100 epochs … base lr = 1.0 for STL-10 and CIFAR-100, lr = 0.1 for CIFAR-10 and Tiny, and lr = 30 for
    # IN-1K. The learning rate decays by 0.1 at 60 and 80 epochs … SGD … weight decay of 0" (batch 256, weak views, as
    # openmixup's r18_linear_*_step_ep100).
    "genurl_stl10": Probe(lr=(1.0,), augment="weak"),
    "genurl_cifar100": Probe(lr=(1.0,), augment="weak"),
    "genurl_cifar10": Probe(lr=(0.1,), augment="weak"),
    "genurl_tiny": Probe(lr=(0.1,), augment="weak"),
    "genurl_imagenet": Probe(lr=(30.0,), augment="weak"),
}  # fmt: skip
