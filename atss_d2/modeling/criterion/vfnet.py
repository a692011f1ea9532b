"""VFNet's losses: the class score learns the quality of the refined box, both boxes are trained.

Shapes: N images, R anchors of an image, K classes, P anchors of the batch that include all
positives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..box_coding import PointDistances
from ..nouns import Predictions, Targets
from .base import CRITERION_REGISTRY
from .box_losses import BOX_IOU_LOSSES
from .positives import Positives, find_positives
from .soft_target import SoftTargetCriterion


@CRITERION_REGISTRY.register()
class VFNetCriterion(SoftTargetCriterion):
    """Varifocal loss, and losses of the first and of the refined box (arXiv 2008.13367, Eq. 4).

    Each box loss of a positive is weighted by the IoU of that box with its target, and divided by
    the sum of these weights; the IoU of the refined box is also what the score learns. The head is
    a :class:`VFNetHead`.
    """

    def __init__(
        self,
        *,
        varifocal_alpha: float = 0.75,
        varifocal_gamma: float = 2.0,
        box_reg_loss_type: str = "giou",
        box_reg_loss_weight: float = 2.0,
        first_box_reg_loss_weight: float = 1.5,
    ) -> None:
        """
        Args:
            varifocal_alpha: Weight of the background in the varifocal loss.
            varifocal_gamma: Exponent of that loss.
            box_reg_loss_type: "giou", "diou" or "ciou".
            box_reg_loss_weight: Weight of the loss of refined boxes.
            first_box_reg_loss_weight: Weight of the loss of first boxes.

        Raises:
            ValueError: ``box_reg_loss_type`` is unknown.
        """
        super().__init__(
            cls_loss="varifocal",
            cls_loss_gamma=varifocal_gamma,
            varifocal_alpha=varifocal_alpha,
            box_reg_loss_type=box_reg_loss_type,
            box_reg_loss_weight=box_reg_loss_weight,
            box_weights="quality",
        )
        self.varifocal_alpha = varifocal_alpha
        self.varifocal_gamma = varifocal_gamma
        self.first_box_reg_loss_weight = first_box_reg_loss_weight

    def bind(self, *, box2box_transform: Any, num_classes: int) -> None:
        """Sets what the detector determines, see :meth:`Criterion.bind`.

        Raises:
            ValueError: The box coder is another one than :class:`PointDistances`.
        """
        if not isinstance(box2box_transform, PointDistances):
            raise ValueError(
                "VFNetCriterion trains distances: set box2box_transform to PointDistances "
                f"(MODEL.ATSS.BOX_CODER in yaml), got {type(box2box_transform).__name__}"
            )
        super().bind(box2box_transform=box2box_transform, num_classes=num_classes)

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes ``loss_cls``, ``loss_box_reg`` (refined boxes) and ``loss_first_box_reg``."""
        if predictions.first_regression is None:
            raise ValueError(
                "VFNetCriterion needs the first boxes that VFNetHead predicts in training: set the "
                "head to VFNetHead (MODEL.ATSS.HEAD.NAME in yaml)"
            )
        first_predictions = predictions._replace(regression=predictions.first_regression)
        refined = find_positives(predictions, targets, self.num_classes)
        first = find_positives(first_predictions, targets, self.num_classes)
        refined_loss, quality = self._sum_of_boxes(refined)
        first_loss, first_quality = self._sum_of_boxes(first)
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        labels = targets.labels.flatten()  # (N x R,)
        dense_quality = quality.new_zeros(labels.shape)
        dense_quality[refined.rows] = quality
        count, sum_refined, sum_first = self.normalizers(
            self._count(refined, quality, targets),
            quality.sum(),
            first_quality.sum(),
            floors=(1, 1, 1),
        )
        return {
            "loss_cls": self._cls_loss(logits, labels, dense_quality) / count,
            "loss_box_reg": refined_loss * (self.box_reg_loss_weight / sum_refined),
            "loss_first_box_reg": first_loss * (self.first_box_reg_loss_weight / sum_first),
        }

    def _sum_of_boxes(self, positives: Positives) -> tuple[Tensor, Tensor]:
        """Returns the box losses weighted by quality, summed, and the qualities (P,)."""
        boxes = self.box2box_transform.apply_deltas(positives.regression, positives.anchors)
        with torch.no_grad():
            quality = self._quality(positives, boxes)
        losses = BOX_IOU_LOSSES[self.box_reg_loss_type](boxes, positives.boxes)
        return (losses * quality).sum(), quality
