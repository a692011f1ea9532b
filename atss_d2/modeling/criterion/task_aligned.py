"""The losses of TOOD (arXiv 2108.07755, Sec. 3.3.2): ATSS's, and then those of task alignment.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), K classes, P anchors of the batch
that include all positives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..choices import check_choice
from ..nouns import Predictions, Targets
from .atss import ATSSCriterion
from .base import CRITERION_REGISTRY
from .box_losses import BOX_IOU_LOSSES, box_reg_loss
from .positives import find_positives
from .soft_target_losses import quality_focal_loss


@CRITERION_REGISTRY.register()
class TaskAlignedCriterion(ATSSCriterion):
    """Quality focal loss of the soft targets, and box loss weighted by them.

    Both are divided by the sum of the soft targets, at least 1. Without soft targets, which a rule
    omits in its warm-up, the losses are those of ATSS: focal loss, and box loss weighted by the
    centerness target, although the head predicts no centerness.
    """

    uses_quality = False
    takes_box_labels = False
    weighs_without_quality = True

    def __init__(
        self,
        *,
        cls_loss_gamma: float = 2.0,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "giou",
        box_reg_loss_weight: float = 2.0,
        centerness_inset: float = 0.0,
    ) -> None:
        """
        Args:
            cls_loss_gamma: Exponent of the quality focal loss.
            focal_loss_alpha: Weight of positives in the focal loss of the warm-up.
            focal_loss_gamma: Exponent of that loss.
            box_reg_loss_type: "giou", "diou" or "ciou".
            box_reg_loss_weight: Weight of the box loss.
            centerness_inset: See :class:`ATSSCriterion`; of the centerness targets of the warm-up.

        Raises:
            ValueError: An argument is out of range.
        """
        check_choice("box_reg_loss_type", box_reg_loss_type, BOX_IOU_LOSSES)
        super().__init__(
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
            box_reg_loss_type=box_reg_loss_type,
            box_reg_loss_weight=box_reg_loss_weight,
            centerness_inset=centerness_inset,
        )
        self.cls_loss_gamma = cls_loss_gamma

    def check_fit(self, head: nn.Module, matcher: Any, *, num_levels: int) -> None:
        """Checks also that the rule gives soft targets: otherwise, the warm-up would never end."""
        super().check_fit(head, matcher, num_levels=num_levels)
        if not getattr(matcher, "gives_soft_targets", True):
            raise ValueError(
                f"TaskAlignedCriterion learns soft targets, which {type(matcher).__name__} does "
                "not give: set matcher to TaskAlignedMatcher, or criterion to SoftTargetCriterion; "
                "a rule of your own that gives them has gives_soft_targets = True"
            )

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes ``loss_cls`` and ``loss_box_reg``."""
        if targets.soft is None:
            return super().compute(predictions, targets)
        soft = targets.soft.flatten().detach()  # (N x R,)
        (sum_soft,) = self.normalizers(soft.sum(), floors=(1,))
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        labels = targets.labels.flatten()
        loss_cls = quality_focal_loss(logits, labels, soft, gamma=self.cls_loss_gamma)
        positives = find_positives(predictions, targets, self.num_classes)
        loss_box_reg = box_reg_loss(
            positives.regression,
            positives.anchors,
            positives.boxes,
            box2box_transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
        )
        weights = torch.where(positives.mask, soft[positives.rows], 0.0)  # (P,)
        return {
            "loss_cls": loss_cls / sum_soft,
            "loss_box_reg": (loss_box_reg * weights).sum() * (self.box_reg_loss_weight / sum_soft),
        }
