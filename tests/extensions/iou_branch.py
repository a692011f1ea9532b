"""The IoU of the predicted box instead of centerness (IoU-aware RetinaNet, arXiv 1912.05992).

A criterion, and what it changes in the config of a detector: all that a user writes.
"""

from __future__ import annotations

from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import Tensor

from atss_d2.modeling.criterion import ATSSCriterion
from atss_d2.modeling.criterion.positives import Positives
from atss_d2.modeling.geometry import paired_iou


class IoUBranchCriterion(ATSSCriterion):
    """ATSS's losses; the third output of the head learns the IoU of the predicted box."""

    quality_name = "iou"

    def quality_targets(self, positives: Positives) -> Tensor:
        boxes = self.box2box_transform.apply_deltas(positives.regression, positives.anchors)
        return paired_iou(boxes, positives.boxes)


def change(model: DictConfig) -> None:
    """Makes the node of an ATSS in a LazyConfig one with an IoU branch."""
    model.criterion = L(IoUBranchCriterion)(centerness_weighted_box_loss=False)
