"""COCO's matching of detections to ground truth at one IoU, to tell right from wrong."""

from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """Result of :func:`match_detections` for D detections and M boxes, all on the CPU.

    Args:
        is_hit: (D,) bool, detections that match a ground-truth box.
        is_ignored: (D,) bool, detections inside a crowd region: neither right nor wrong.
        is_found: (M,) bool, boxes that a detection matches; never true for a crowd region.
    """

    is_hit: Tensor
    is_ignored: Tensor
    is_found: Tensor

    @property
    def is_false_alarm(self) -> Tensor:
        """(D,) bool, all other detections."""
        return ~self.is_hit & ~self.is_ignored


def match_detections(
    instances: Instances,
    gt_boxes: Boxes,
    gt_classes: Tensor,
    is_crowd: Tensor,
    *,
    iou_thresh: float = 0.5,
) -> Matches:
    """Matches as COCOeval does: highest scores first, each box only once.

    Args:
        instances: D detections of an image with ``pred_boxes``, ``scores`` and ``pred_classes``.
        gt_boxes: M boxes.
        gt_classes: (M,) classes of the boxes; only equal classes match.
        is_crowd: (M,) bool, COCO's ``iscrowd``. Any number of detections may match such a region,
            by the fraction of their own area inside it.
        iou_thresh: Minimum IoU of a match.
    """
    instances = instances.to("cpu")
    boxes, classes = instances.pred_boxes, instances.pred_classes
    same_class = classes[:, None] == gt_classes[None]  # (D, M)
    ious = pairwise_iou(boxes, gt_boxes) * (same_class & ~is_crowd)  # (D, M)
    shares = pairwise_ioa(gt_boxes, boxes).T  # (D, M), of a detection's own area
    in_crowd = (shares >= iou_thresh) & same_class & is_crowd  # (D, M)

    is_hit = torch.zeros(len(instances), dtype=torch.bool)
    is_found = torch.zeros(len(gt_boxes), dtype=torch.bool)
    if len(gt_boxes):
        for i in instances.scores.argsort(descending=True, stable=True).tolist():
            iou, j = ious[i].masked_fill(is_found, 0.0).max(dim=0)
            if iou >= iou_thresh:
                is_hit[i] = is_found[j] = True
    return Matches(is_hit, in_crowd.any(dim=1) & ~is_hit, is_found)
