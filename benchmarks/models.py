"""Detectors to compare: ATSS as in its config, Detectron2's as in its model zoo.

They differ only in head, sample selection and losses: backbone and pixels are those of ATSS.
"""

from __future__ import annotations

import math
import warnings

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from omegaconf import DictConfig
from torch import Tensor, nn

import atss_d2
from atss_d2.warning_filters import filter_third_party_warnings

from .scenes import STRIDES

with warnings.catch_warnings():
    filter_third_party_warnings()
    from detectron2 import model_zoo

ATSS, FCOS, RETINANET = "ATSS", "Detectron2 FCOS", "Detectron2 RetinaNet"
_CONFIG = "coco/atss_R_50_FPN_1x"
# What grew out of ATSS, by the name in tables.
FAMILY = {
    "GFL": "coco/gfl_R_50_FPN_1x",
    "GFLv2": "coco/gflv2_R_50_FPN_1x",
    "PAA": "coco/paa_R_50_FPN_1x",
    "VFNet": "coco/vfnet_R_50_FPN_1x",
    "TOOD": "coco/tood_R_50_FPN_1x",
    "DDOD": "coco/ddod_R_50_FPN_1x",
    "DyHead": "coco/atss_dyhead_R_50_FPN_1x",
}
_ZOO = {
    FCOS: "COCO-Detection/fcos_R_50_FPN_1x.py",
    RETINANET: "COCO-Detection/retinanet_R_50_FPN_1x.py",
}
_PIXEL_STD = [57.375, 57.12, 58.395]  # random weights do not make up for its absence
_CHANNELS = 256
# With this weight, residual branches add up to features as large as a trained network's.
_BRANCH_WEIGHT = 0.2


class ZeroPyramid(Backbone):
    """A backbone that returns zeros at no cost, to measure what comes after the head."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        return {
            name: x.new_zeros(
                len(x), _CHANNELS, math.ceil(height / shape.stride), math.ceil(width / shape.stride)
            )
            for name, shape in self.output_shape().items()
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"p{i + 3}": ShapeSpec(channels=_CHANNELS, stride=stride)
            for i, stride in enumerate(STRIDES)
        }


def build(
    name: str,
    *,
    num_classes: int = 80,
    num_anchors: int | None = None,
    with_backbone: bool = False,
    with_centerness: bool = True,
) -> nn.Module:
    """Builds a detector with random weights, the same ones in every run.

    Args:
        name: :data:`ATSS`, one of :data:`FAMILY`, :data:`FCOS` or :data:`RETINANET`.
        num_classes: K.
        num_anchors: 1 gives RetinaNet the anchors of ATSS. Default: as published.
        with_backbone: Whether to build the R-50-FPN; otherwise :class:`ZeroPyramid`.
        with_centerness: False builds ATSS without centerness, with RetinaNet's scores.
    """
    ours = atss_d2.get_config(FAMILY.get(name, _CONFIG)).model
    cfg: DictConfig = model_zoo.get_config(_ZOO[name]).model if name in _ZOO else ours
    cfg.backbone = ours.backbone if with_backbone else L(ZeroPyramid)()
    cfg.pixel_std = _PIXEL_STD
    cfg.num_classes = num_classes
    if name == RETINANET and num_anchors == 1:
        cfg.anchor_generator = ours.anchor_generator
        cfg.head.num_anchors = 1
    if name == ATSS and not with_centerness:
        cfg.head.with_centerness = False
    torch.manual_seed(0)
    model = instantiate(cfg)
    for module in model.modules():
        if isinstance(module, BottleneckBlock) and isinstance(module.conv3.norm, FrozenBatchNorm2d):
            module.conv3.norm.weight.fill_(_BRANCH_WEIGHT)
    return model
