"""VFNet: the published head and scene, and a toy detector."""

from __future__ import annotations

import math

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from atss_d2.checkpoint.foreign_names import our_names
from atss_d2.modeling import ATSS, VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import CHANNELS, build
from tests.reference import published_quality

LEVELS = range(5)
STRIDES = published_quality()["strides"].tolist()
# Our losses -> mmdetection's.
LOSSES = {
    "loss_cls": "loss_cls",
    "loss_box_reg": "loss_bbox_rf",
    "loss_first_box_reg": "loss_bbox",
}


def tensor(name: str) -> Tensor:
    """A published array."""
    return torch.from_numpy(np.asarray(published_quality()[name]))


def of_levels(name: str) -> list[Tensor]:
    return [tensor(f"{name}_{level}") for level in LEVELS]


def of_images(name: str) -> list[Tensor]:
    return [tensor(f"{name}_{i}") for i in range(2)]


def anchors() -> list[Tensor]:
    """L x (Ri, 4)."""
    return list(tensor("anchors").split([x[0, 0].numel() for x in of_levels("feat")]))


def our_name(theirs: str) -> str:
    """Our name of a parameter of mmdetection's head."""
    (name,) = our_names(
        [f"bbox_head.{theirs.removeprefix('bbox_head.')}"], "mmdet", "vfnet"
    ).values()
    return name.removeprefix("head.")


def published_head() -> VFNetHead:
    """mmdetection's head, with its weights."""
    head = VFNetHead(
        input_shape=[ShapeSpec(channels=32)] * len(LEVELS), num_classes=5, conv_dims=[32] * 3
    )
    prefix = "vfnet.sd."
    keys = [key for key in published_quality() if key.startswith(prefix)]
    head.load_state_dict({our_name(key.removeprefix(prefix)): tensor(key) for key in keys})
    return head


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
