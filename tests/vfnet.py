"""VFNet: the published head and scene, and a toy detector."""

from __future__ import annotations

import re

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from atss_d2.modeling import ATSS, VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import CHANNELS, build
from tests.reference import published_quality

LEVELS = range(5)
STRIDES = published_quality()["strides"].tolist()
# mmdetection's names in the head -> ours.
NAMES = {
    r"vfnet_cls_dconv": "cls_star",
    r"vfnet_cls": "cls_score",
    r"vfnet_reg_conv\.conv": "first_subnet.0",
    r"vfnet_reg_conv\.gn": "first_subnet.1",
    r"vfnet_reg": "bbox_pred",
    r"vfnet_reg_refine_dconv": "bbox_star",
    r"vfnet_reg_refine": "refined_pred",
    r"scales_refine\.(\d)": r"refined_scales.\1",
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
    module, _, parameter = theirs.removeprefix("bbox_head.").rpartition(".")
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, module):
            return f"{re.sub(pattern, ours, module)}.{parameter}"
    tower = re.fullmatch(r"(cls|reg)_convs\.(\d)\.(conv|gn)", module)
    if tower is None:
        return f"{module}.{parameter}"
    place = 3 * int(tower[2]) + (tower[3] == "gn")
    return f"{dict(cls='cls', reg='bbox')[tower[1]]}_subnet.{place}.{parameter}"


def published_head() -> VFNetHead:
    """mmdetection's head, with its weights."""
    head = VFNetHead(
        input_shape=[ShapeSpec(channels=32)] * len(LEVELS), num_classes=5, conv_dims=[32] * 3
    )
    prefix = "vfnet.sd."
    keys = [key for key in published_quality() if key.startswith(prefix)]
    head.load_state_dict({our_name(key.removeprefix(prefix)): tensor(key) for key in keys})
    return head


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
    head = toy_head()
    model = build(
        **{
            "head": head,
            "box2box_transform": PointDistances(anchor_scale=4),
            "criterion": VFNetCriterion(),
            **options,
        }
    )
    for module in (head.first_subnet[0], head.cls_star, head.bbox_star, head.refined_pred):
        nn.init.normal_(module.weight, std=0.05)
    return model
