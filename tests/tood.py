"""A toy TOOD, all of whose parts matter."""

import torch
from detectron2.layers import ShapeSpec

from atss_d2.modeling import ATSSMatcher, TaskAlignedCriterion, TaskAlignedMatcher, TOODHead
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import CHANNELS, build


def tood_head(num_levels=2, *, seed=0, std=0.15, **options):
    """A head of three shared convolutions."""
    torch.manual_seed(seed)
    options = {"num_classes": 3, "conv_dims": [CHANNELS] * 3, **options}
    head = TOODHead(input_shape=[ShapeSpec(channels=CHANNELS)] * num_levels, **options)
    for part in (head.cls_score, head.bbox_pred, head.alignment[-1], head.side_offsets[-1]):
        torch.nn.init.normal_(part.weight, std=std)
    torch.nn.init.normal_(head.side_offsets[0].weight, std=std)
    for part in (head.cls_decomposition, head.bbox_decomposition):
        for conv in part.layer_attention[0:3:2]:
            torch.nn.init.normal_(conv.weight, std=1.0)
    for part, bias in ((head.cls_score, -1.5), (head.alignment[-1], -1.5), (head.bbox_pred, 0.7)):
        torch.nn.init.constant_(part.bias, bias)
    return head


def tood(num_levels=2, *, warm_up_iterations=0, seed=0, **options):
    """A detector; anchors are four strides wide."""
    parts = {
        "head": tood_head(num_levels, seed=seed),
        "box2box_transform": PointDistances(anchor_scale=4, clamp=False),
        "matcher": TaskAlignedMatcher(warm_up=ATSSMatcher(), warm_up_iterations=warm_up_iterations),
        "criterion": TaskAlignedCriterion(),
        **options,
    }
    return build(num_levels, seed=seed, **parts)
