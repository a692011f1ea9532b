"""Small detectors and scenes of the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

import atss_d2
from atss_d2.modeling.matchers import (
    ATSSMatcher,
    CenterSamplingMatcher,
    DenseMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)

from .. import scenes

_STRIDES = scenes.STRIDES
RULES: dict[str, Callable[[], DenseMatcher]] = {
    "ATSS": lambda: ATSSMatcher(topk=9, ignore_ioa_thresh=0.5),
    "IoU": lambda: IoUMatcher(thresholds=(0.4, 0.5), ignore_ioa_thresh=0.5),
    "scale range": lambda: ScaleRangeMatcher(strides=_STRIDES, ignore_ioa_thresh=0.5),
    "center radius": lambda: CenterSamplingMatcher(strides=_STRIDES, ignore_ioa_thresh=0.5),
    "center top-k": lambda: CenterSamplingMatcher(
        strides=_STRIDES, radius=None, topk=9, ignore_ioa_thresh=0.5
    ),
    "top-k": lambda: TopKMatcher(ignore_ioa_thresh=0.5),
}


def mobile_detector(num_classes: int = 6, **options) -> nn.Module:
    """Builds the demo's detector with random weights, in evaluation mode.

    Its biases are raised, so that it detects something everywhere.
    """
    cfg = atss_d2.get_config("demo/atss_mobilenetv2_shapes").model
    cfg.num_classes = num_classes
    # Frozen statistics of untrained weights would let the features explode.
    cfg.backbone.bottom_up.update(norm="BN", freeze_at=0)
    cfg.update(options)
    torch.manual_seed(0)
    model = instantiate(cfg).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.head.parameters():
        if parameter.shape[:1] == (num_classes,) and parameter.dim() == 1:
            parameter.data = torch.randn(num_classes, generator=generator) - 1
        elif parameter.shape[:1] == (num_classes,):
            parameter.data *= 30  # scores that differ
    return model


def crowded_scene(
    image_size: tuple[int, int], num_boxes: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns anchors, boxes and ignore flags of three images: many boxes, none, few.

    A half of the boxes are on whole pixels, where IoUs and distances are often equal; some have no
    area, and some occur twice.
    """
    anchors = [level.tensor for level in scenes.anchors(image_size)]
    boxes = scenes.random_boxes(num_boxes, image_size)
    boxes[::2] = boxes[::2].round()
    boxes[1] = boxes[0]
    boxes[2, 2:] = boxes[2, :2]
    gt_boxes = [boxes, boxes[:0], boxes[:3]]
    return anchors, gt_boxes, [torch.arange(len(b)) % 10 == 9 for b in gt_boxes]


def unmatched(
    found: Sequence[Tensor], expected: Sequence[Tensor], *, pixels: float, score: float
) -> int:
    """Counts detections (boxes, scores, classes) of either side without a partner on the other.

    Detections whose scores are equal but for rounding may change places, so they are compared as
    sets.
    """
    found, expected = ([x.cpu().double() for x in side] for side in (found, expected))
    if not len(found[0]) or not len(expected[0]):
        return len(found[0]) + len(expected[0])
    is_same = (found[0][:, None] - expected[0]).abs().amax(dim=2) <= pixels
    is_same &= (found[1][:, None] - expected[1]).abs() <= score
    is_same &= found[2][:, None] == expected[2]
    return int((~is_same.any(dim=0)).sum() + (~is_same.any(dim=1)).sum())
