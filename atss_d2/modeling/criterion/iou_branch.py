"""The losses of ATSS with a branch that predicts the IoU of the box instead of centerness.

Shapes: P anchors of the batch that include all positives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import paired_iou
from ..nouns import Targets
from .atss import ATSSCriterion
from .base import CRITERION_REGISTRY
from .positives import DEFAULT_FLOORS, Positives


@CRITERION_REGISTRY.register()
class IoUBranchCriterion(ATSSCriterion):
    """ATSS's losses; the third output of the head learns the IoU of the predicted box.

    "IoU-aware Single-stage Object Detector" (arXiv 1912.05992), and the losses of PAA (arXiv
    2007.08103).
    """

    quality_name = "iou"
    uses_quality = True

    def __init__(
        self,
        *,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "giou",
        smooth_l1_beta: float = 0.11,
        box_reg_loss_weight: float = 2.0,
        quality_weighted_box_loss: bool = False,
        quality_loss_weight: float = 1.0,
        floor_per_image: bool = False,
        floor_by_images: bool = False,
    ) -> None:
        """
        Args:
            focal_loss_alpha: See :class:`ATSSCriterion`, as for the next four.
            focal_loss_gamma: See there.
            box_reg_loss_type: See there.
            smooth_l1_beta: See there.
            box_reg_loss_weight: See there.
            quality_weighted_box_loss: Whether the box loss of a positive is weighted by the IoU of
                its predicted box (PAA). Otherwise all have the same weight.
            quality_loss_weight: Weight of the loss of the quality, ``loss_iou``.
            floor_per_image: See :class:`ATSSCriterion`.
            floor_by_images: Whether the classification loss is divided by at least the number of
                images, as in mmdetection's PAA.
        """
        super().__init__(
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
            box_reg_loss_type=box_reg_loss_type,
            smooth_l1_beta=smooth_l1_beta,
            box_reg_loss_weight=box_reg_loss_weight,
            centerness_weighted_box_loss=quality_weighted_box_loss,
            centerness_loss_weight=quality_loss_weight,
            floor_per_image=floor_per_image,
        )
        self.floor_by_images = floor_by_images
        self.totals_need_predictions = quality_weighted_box_loss

    def loss_normalizers(
        self, targets: Targets, totals: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.floor_by_images:
            return super().loss_normalizers(targets, totals)
        num_positives, sum_weights, num_images = self.normalizers(
            *totals, _num_images(targets), floors=(*DEFAULT_FLOORS, 1)
        )
        return torch.maximum(num_positives, num_images), num_positives, sum_weights

    def totals(self, targets: Targets, *, with_quality: bool) -> tuple[Tensor, ...] | None:
        """Returns None if box losses are weighted, else what :class:`ATSSCriterion` returns.

        With ``floor_by_images``, the number of images follows.
        """
        if self.totals_need_predictions:
            return None
        totals = super().totals(targets, with_quality=with_quality)
        return (*totals, _num_images(targets)) if self.floor_by_images else totals

    def quality_targets(self, positives: Positives) -> Tensor:
        """Returns the IoU (P,) of the predicted boxes with their targets, no gradient."""
        boxes = self.box2box_transform.apply_deltas(positives.regression, positives.anchors)
        return paired_iou(boxes, positives.boxes)


def _num_images(targets: Targets) -> Tensor:
    """Returns the number of images, 0-dim, without a copy from the host."""
    return torch.full((), len(targets.labels), device=targets.labels.device)
