"""How a detector is trained on an encoder: the section `eval.detection`; the sentences are in docs/protocols.md.

The defaults are ReSSL's Table 12: Mask R-CNN C4 on COCO in MoCo's setting, detectron2's 2× schedule at a rate of 0.04.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysurl.recipe.schema import Section

Pixels = Annotated[int, Field(ge=32)]


class Detection(Section):
    """Mask R-CNN on a ResNet, fine-tuned in all layers."""

    head: Literal["c4", "fpn"] = "c4"  # the fourth stage on each box, or a pyramid of all four
    steps: int = Field(
        180_000, ge=1
    )  # the rate falls to a tenth after two thirds and after eight ninths of them
    batch_size: int = Field(16, ge=1)  # images of a step, of all workers together
    lr: float = Field(0.04, gt=0)  # for batches of that size
    warmup_steps: int = Field(1000, ge=0)  # in which the rate rises from a thousandth
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(1e-4, ge=0)  # of norms and biases none
    sizes: tuple[Pixels, ...] = Field(
        (640, 672, 704, 736, 768, 800), min_length=1
    )  # shorter sides, one drawn a step
    test_size: Pixels = 800  # shorter side of test images
    longest: Pixels = 1333  # side of any image
    proposals: int = Field(
        2000, ge=1
    )  # boxes of each train image that are looked at; of a test image half of them
    rois: int = Field(512, ge=4)  # of these, how many are trained on
    channels: int = Field(256, ge=1)  # of the pyramid, and of the layers that make masks

    def words(self) -> str:
        """The settings, in the words of the papers."""
        sizes = f"{self.sizes[0]} to {self.sizes[-1]}" if len(self.sizes) > 1 else f"{self.sizes[0]}"
        parts = [
            {"c4": "Mask R-CNN C4, an extra norm behind the fourth stage", "fpn": "Mask R-CNN FPN"}[
                self.head
            ],
            f"all layers; {self.steps:,} steps of {self.batch_size} images",
            f"SGD, rate {self.lr:g}, ×0.1 after two thirds and eight ninths",
            f"{self.warmup_steps:,} steps of warm-up",
            f"momentum {self.momentum:g}",
            f"decay {self.weight_decay:g}",
            f"shorter sides of {sizes} px, {self.test_size} in the test, flips",
        ]
        return "; ".join(parts)
