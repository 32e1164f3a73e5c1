"""Mask R-CNN (He et al. 2017) on a ResNet encoder, of torchvision's parts.

C4, as detectron2 and MoCo have it: the backbone is the network up to its third stage, and the fourth stage, followed by
a norm of its own, is the head of each box and, shared, of each mask. FPN is torchvision's: a pyramid of four stages.
Norms stay those of the encoder, and are trained. Differs from detectron2: its box losses are absolute differences,
torchvision's are smooth below 1/9.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from raysurl.nets.norm import convert
from raysurl.recipe import Recipe
from raysurl.recipe.detections import Detection

STAGES = ("layer1", "layer2", "layer3", "layer4")
ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels, of C4's one feature map
RATIOS = (0.5, 1.0, 2.0)
PROPOSED = {
    "c4": (12_000, 6_000),
    "fpn": (2_000, 1_000),
}  # boxes before those that overlap go, in training and test


def is_resnet(encoder: nn.Module) -> bool:
    """Whether it is torchvision's: timm's has other names between its layers."""
    return all(hasattr(encoder, name) for name in ("conv1", "bn1", "relu", "maxpool", *STAGES))


def detector_of(encoder: nn.Module, num_classes: int, recipe: Recipe) -> MaskRCNN:
    """A detector of `num_classes` kinds, numbered from 1, on a copy of the encoder."""
    settings, net = recipe.eval.detection, copy.deepcopy(encoder)
    net.requires_grad_(True)
    build = {"c4": _c4, "fpn": _fpn}[settings.head]
    before, proposals = PROPOSED[settings.head], settings.proposals
    model = build(
        net,
        num_classes + 1,
        settings,
        recipe.norm,
        rpn_pre_nms_top_n_train=max(before[0], proposals),
        rpn_pre_nms_top_n_test=max(before[1], proposals // 2),
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=max(proposals // 2, 1),
        box_batch_size_per_image=settings.rois,
    )
    v = recipe.views
    model.transform = Resize(settings.test_size, settings.longest, list(v.mean), list(v.std))
    return model


class Resize(GeneralizedRCNNTransform):
    """torchvision's, but that the shorter side of train images is `side`, which whoever trains sets at each step."""

    side: int = 0

    def torch_choice(self, k: Any) -> int:
        return self.side


class Trunk(nn.Module):
    """Images (b, 3, H, W) -> (b, out_channels, H/16, W/16) of a ResNet's third stage."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3)
        self.out_channels = int(net.layer4[0].conv1.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.stem(x))
        return out


def _c4(net: Any, classes: int, settings: Detection, norm: str, **options: Any) -> MaskRCNN:
    extra = convert(nn.Sequential(nn.BatchNorm2d(net.dim)), norm)
    stage = nn.Sequential(net.layer4, extra)
    pooled = nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def roi_pool() -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0)

    return MaskRCNN(
        Trunk(net),
        None,
        rpn_anchor_generator=AnchorGenerator((ANCHORS,), (RATIOS,)),
        box_roi_pool=roi_pool(),
        box_head=pooled,
        box_predictor=FastRCNNPredictor(net.dim, classes),
        mask_roi_pool=roi_pool(),
        mask_head=stage,
        mask_predictor=MaskRCNNPredictor(net.dim, settings.channels, classes),
        **options,
    )


def _fpn(net: Any, classes: int, settings: Detection, norm: str, **options: Any) -> MaskRCNN:
    widths = [_width(getattr(net, stage)) for stage in STAGES]
    backbone = BackboneWithFPN(
        net, {stage: str(i) for i, stage in enumerate(STAGES)}, widths, settings.channels
    )
    predictor = MaskRCNNPredictor(256, settings.channels, classes)  # torchvision's mask head ends in 256
    box_classes = {"box_predictor": FastRCNNPredictor(1024, classes)}
    return MaskRCNN(backbone, None, mask_predictor=predictor, **box_classes, **options)


def _width(stage: Any) -> int:
    """Channels that a stage ends in."""
    last = stage[-1]
    return int((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)
