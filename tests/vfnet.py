"""VFNet: the published head and scene, and a toy detector."""

from __future__ import annotations

import math

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from atss_d2.modeling import ATSS, VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import CHANNELS, build
from tests.quality_scene import (
    NUM_LEVELS,
    anchors,
    load_published,
    of_images,
    of_levels,
    our_names_of,
    tensor,
)
from tests.reference import published_quality

__all__ = ["anchors", "of_images", "of_levels", "tensor"]  # of the published scene
STRIDES = published_quality()["strides"].tolist()
# Our losses -> mmdetection's.
LOSSES = {
    "loss_cls": "loss_cls",
    "loss_box_reg": "loss_bbox_rf",
    "loss_first_box_reg": "loss_bbox",
}


def our_name(theirs: str) -> str:
    """Our name of a parameter of mmdetection's head."""
    return our_names_of("vfnet")[f"bbox_head.{theirs.removeprefix('bbox_head.')}"]


def published_head() -> VFNetHead:
    """mmdetection's head, with its weights."""
    head = VFNetHead(
        input_shape=[ShapeSpec(channels=32)] * NUM_LEVELS, num_classes=5, conv_dims=[32] * 3
    )
    return load_published(head, "vfnet")


def assert_published_detections(
    prefix: str, i: int, boxes: Tensor, scores: Tensor, classes: Tensor
) -> None:
    """Detections are the published ones of an image, as sets."""
    expected_boxes, expected_scores, expected_classes = (
        tensor(f"{prefix}.det_{x}_{i}") for x in ("boxes", "scores", "classes")
    )
    assert len(boxes) == len(expected_boxes) == 100
    costs = (boxes[:, None] - expected_boxes).abs().amax(dim=2)
    costs += 1e3 * (scores[:, None] - expected_scores).abs()
    costs[classes[:, None] != expected_classes] = math.inf
    partners = costs.argmin(dim=1)
    assert sorted(partners.tolist()) == list(range(100))
    torch.testing.assert_close(boxes, expected_boxes[partners], rtol=0, atol=1e-3)
    torch.testing.assert_close(scores, expected_scores[partners], rtol=0, atol=1e-5)


def toy_head(num_levels: int = 2, num_classes: int = 3, **options) -> VFNetHead:
    """A head of one convolution a tower, for anchors of 4 strides."""
    return VFNetHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * num_levels,
        num_classes=num_classes,
        conv_dims=[CHANNELS],
        **{"unit_distance": 2.0, **options},
    )


def toy_vfnet(seed: int = 0, **options) -> ATSS:
    """A toy VFNet with weights that give scores, and boxes, of all sizes."""
    torch.manual_seed(seed)
    model = build(
        **{
            "head": toy_head(),
            "box2box_transform": PointDistances(anchor_scale=4),
            "criterion": VFNetCriterion(),
            **options,
        }
    )
    head = model.head
    if isinstance(head, VFNetHead):
        for module in (head.first_subnet[0], head.cls_star, head.bbox_star, head.refined_pred):
            nn.init.normal_(module.weight, std=0.05)
    return model
