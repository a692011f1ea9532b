"""Non-maximum suppression per class.

Shapes: T candidates, D detections.
"""

from __future__ import annotations

import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from torch import Tensor
from torchvision.ops import nms

# From so many candidates on, Detectron2 goes class by class on a CPU as well, but looks through all
# of them for each class. `python -m benchmarks nms` compares the ways.
_CPU_BY_CLASS = 1000


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> Tensor:
    """Removes boxes that overlap a box of their class with a higher score.

    The same as Detectron2's ``batched_nms``, whatever way is taken: all boxes at once, shifted
    apart by class, or class by class on a CPU with many boxes.

    Args:
        boxes: (T, 4) XYXY in float32, no coordinate negative.
        scores: (T,) float32.
        classes: (T,) int64.
        iou_thresh: IoU above which the box of lower score is removed.

    Returns:
        (D,) int64 indices of the boxes that stay, best score first, of equal scores the lower
        index.
    """
    if boxes.device.type != "cpu" or len(boxes) < _CPU_BY_CLASS or torch.jit.is_tracing():
        return detectron2_batched_nms(boxes, scores, classes, iou_thresh)
    order = classes.argsort(stable=True)  # (T,), within a class as before
    sizes = classes.bincount().tolist()
    kept = [order[:0]]
    for of_class, class_boxes, class_scores in zip(
        order.split(sizes), boxes[order].split(sizes), scores[order].split(sizes)
    ):
        kept.append(of_class[nms(class_boxes, class_scores, iou_thresh)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]
