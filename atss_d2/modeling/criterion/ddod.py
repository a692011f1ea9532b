"""The losses of DDOD: those of an IoU branch, with weights that balance the levels of the FPN.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), K classes, P anchors of the batch
that include all positives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nouns import Predictions, Targets
from .base import CRITERION_REGISTRY
from .box_losses import box_reg_loss
from .centerness import centerness_loss
from .focal_loss import sigmoid_focal_loss
from .iou_branch import IoUBranchCriterion
from .positives import find_positives, is_positive, num_processes


@CRITERION_REGISTRY.register()
class DDODCriterion(IoUBranchCriterion):
    """Focal loss, box loss and loss of an IoU branch, each weighted by level.

    "Disentangle Your Dense Object Detector" (arXiv 2107.02963): a level that had few positives
    since the training started has a higher weight, see :func:`level_weights`. Positives of the
    classification and those of boxes and their quality are counted separately, as a rule such as
    :class:`DDODMatcher` selects them separately.

    Only training steps count: neither losses in evaluation mode nor those without a gradient.

    Attributes:
        num_positives: (2, L) int64 buffer: positives of the classification, and of boxes, of all
            processes since the training started. It is saved in checkpoints.
    """

    def __init__(
        self,
        *,
        num_levels: int = 5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "giou",
        smooth_l1_beta: float = 0.11,
        box_reg_loss_weight: float = 2.0,
        quality_loss_weight: float = 1.0,
        shared_counter: bool = False,
        floor_per_image: bool = False,
    ) -> None:
        """
        Args:
            num_levels: L.
            focal_loss_alpha: See :class:`ATSSCriterion`, as for the next four.
            focal_loss_gamma: See there.
            box_reg_loss_type: See there.
            smooth_l1_beta: See there.
            box_reg_loss_weight: See there.
            quality_loss_weight: Weight of the loss of the quality, ``loss_iou``.
            shared_counter: Whether one counter serves both kinds of positives, as in mmdetection:
                the weights of the classification follow from all positives except those of boxes in
                this iteration, the weights of boxes from all.
            floor_per_image: Whether an image without positives counts as one positive in the
                normalizers, as in mmdetection.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
            box_reg_loss_type=box_reg_loss_type,
            smooth_l1_beta=smooth_l1_beta,
            box_reg_loss_weight=box_reg_loss_weight,
            quality_loss_weight=quality_loss_weight,
            floor_per_image=floor_per_image,
        )
        if num_levels < 1:
            raise ValueError(f"num_levels must be >= 1, got {num_levels}")
        self.shared_counter = shared_counter
        self.num_positives: Tensor
        self.register_buffer("num_positives", torch.zeros(2, num_levels, dtype=torch.int64))

    def check_fit(self, head: nn.Module, matcher: Any, *, num_levels: int) -> None:
        """Checks the parts, see :meth:`Criterion.check_fit`.

        Raises:
            ValueError: There are not ``num_levels`` levels, or as there.
        """
        super().check_fit(head, matcher, num_levels=num_levels)
        self._check_levels(num_levels)

    def _check_levels(self, num_levels: int) -> None:
        own = self.num_positives.shape[1]
        if num_levels != own:
            raise ValueError(
                f"DDODCriterion was built for {own} levels, but the model has {num_levels}: set "
                f"criterion.num_levels={num_levels} (MODEL.ATSS.DDOD_CRITERION.NUM_LEVELS in yaml)"
            )

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes ``loss_cls``, ``loss_box_reg`` and ``loss_iou``.

        Raises:
            ValueError: There are not ``num_levels`` levels.
        """
        sizes = [level.shape[1] for level in predictions.logits]  # Ri
        self._check_levels(len(sizes))
        labels = [targets.labels, targets.labels_of_boxes]  # (N, R) each
        num_cls, num_box, counts = self._count_by_level(labels, sizes)
        cls_weights, box_weights = self._level_weights(counts).to(num_cls.dtype)  # (L,) each

        loss_cls = torch.stack(
            [
                sigmoid_focal_loss(
                    of_level.flatten(0, 1),
                    level_labels.flatten(),
                    alpha=self.focal_loss_alpha,
                    gamma=self.focal_loss_gamma,
                )
                for of_level, level_labels in zip(
                    predictions.logits, targets.labels.split(sizes, dim=1)
                )
            ]
        )
        positives = find_positives(predictions, targets, self.num_classes)
        quality, weights, _ = self._weigh(positives, targets)  # (P,) each
        by_anchor = [weight.expand(size) for weight, size in zip(box_weights, sizes)]
        weights = weights * torch.cat(by_anchor).repeat(len(targets.labels))[positives.rows]
        loss_box_reg = box_reg_loss(
            positives.regression,
            positives.anchors,
            positives.boxes,
            box2box_transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        loss_iou = centerness_loss(positives.quality, quality)
        return {
            "loss_cls": (loss_cls * cls_weights).sum() / num_cls,
            "loss_box_reg": (loss_box_reg * weights).sum() * (self.box_reg_loss_weight / num_box),
            "loss_iou": (loss_iou * weights).sum() * (self.centerness_loss_weight / num_box),
        }

    @torch.no_grad()
    def _count_by_level(
        self, labels: list[Tensor], sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Counts the positives of a batch, over all processes, in one message.

        Args:
            labels: (N, R) of the classification and of boxes.
            sizes: Ri of the L levels.

        Returns:
            Both normalizers, 0-dim, and the positives (2, L) int64.
        """
        per_level = [
            level.sum()
            for x in labels
            for level in is_positive(x, self.num_classes).split(sizes, 1)
        ]
        totals = [self._count(x) for x in labels]
        floors = (1, 1, *[0] * len(per_level))
        num_cls, num_box, *means = self.normalizers(*totals, *per_level, floors=floors)
        counts = (torch.stack(means) * num_processes()).round().long()
        return num_cls, num_box, counts.view_as(self.num_positives)

    def _level_weights(self, counts: Tensor) -> Tensor:
        """Adds the positives (2, L) of a training step; returns the weights (2, L), float64."""
        is_step = self.training and torch.is_grad_enabled()
        before = self.num_positives[1].clone()
        if is_step:
            self.num_positives += counts
        after = self.num_positives
        if self.shared_counter:
            after = torch.stack((after[0] + before, after[0] + after[1]))
        return level_weights(after)


def level_weights(num_positives: Tensor) -> Tensor:
    """Returns weights (..., L) in float64: 1 for the level with most positives, 2 for the fewest.

    Args:
        num_positives: (..., L). If the levels have equally many, all weights are 2.
    """
    counts = num_positives.double()
    fewest, most = counts.amin(dim=-1, keepdim=True), counts.amax(dim=-1, keepdim=True)
    return 2 - (counts - fewest) / (most - fewest).clamp(min=1)
