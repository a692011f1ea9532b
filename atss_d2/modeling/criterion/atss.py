"""The losses of ATSS (Sec. 3.1): focal loss, IoU loss of the boxes, centerness.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..box_coding import num_box_values
from ..choices import check_choice
from ..nouns import Predictions, Targets
from .base import CRITERION_REGISTRY, Criterion
from .box_losses import BOX_REG_LOSS_TYPES, box_reg_loss
from .centerness import centerness_loss, centerness_targets
from .focal_loss import sigmoid_focal_loss
from .positives import (
    DEFAULT_FLOORS,
    Positives,
    count_with_floor,
    find_positives,
    is_positive,
)


@CRITERION_REGISTRY.register()
class ATSSCriterion(Criterion):
    """Focal loss, box loss of the positives weighted by their centerness, and centerness loss.

    If a rule returns soft targets, they replace the centerness targets. A subclass may define other
    targets, see :meth:`quality_targets`.

    Attributes:
        quality_name: Name of the loss of the head's third output, ``loss_<name>``; a class
            attribute.
        weighs_without_quality: Whether box losses are weighted even if the head predicts no
            quality; a class attribute.
    """

    quality_name = "centerness"
    takes_box_labels = True
    weighs_without_quality = False

    def __init__(
        self,
        *,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "giou",
        smooth_l1_beta: float = 0.11,
        box_reg_loss_weight: float = 2.0,
        centerness_weighted_box_loss: bool = True,
        centerness_loss_weight: float = 1.0,
        centerness_inset: float = 0.0,
        floor_per_image: bool = False,
    ) -> None:
        """
        Args:
            focal_loss_alpha: Weight of positives in the focal loss.
            focal_loss_gamma: Exponent of the focal loss.
            box_reg_loss_type: "giou", "diou", "ciou" (of decoded boxes) or "smooth_l1" (of deltas,
                RetinaNet's).
            smooth_l1_beta: Where smooth L1 turns from a parabola to a line.
            box_reg_loss_weight: Weight of the box loss.
            centerness_weighted_box_loss: Whether the box loss of a positive is weighted by its
                centerness target, if the head predicts centerness. Otherwise all have the same
                weight.
            centerness_loss_weight: Weight of the centerness loss.
            centerness_inset: Pixels subtracted from each of the four distances in the centerness
                target. 0 is continuous geometry; 0.5 gives the targets of the authors'
                inclusive-corner geometry.
            floor_per_image: Whether an image without positives counts as one positive in the
                normalizer of the classification and centerness losses, as in mmdetection.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_choice("box_reg_loss_type", box_reg_loss_type, BOX_REG_LOSS_TYPES)
        if centerness_inset < 0:
            raise ValueError(f"centerness_inset must be >= 0, got {centerness_inset}")
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_weight = box_reg_loss_weight
        self.centerness_weighted_box_loss = centerness_weighted_box_loss
        self.centerness_loss_weight = centerness_loss_weight
        self.centerness_inset = centerness_inset
        self.floor_per_image = floor_per_image

    def bind(self, *, box2box_transform: Any, num_classes: int) -> None:
        """Sets what the detector determines, and checks that the box coder fits the loss.

        Raises:
            ValueError: The loss is smooth L1, and the box coder does not take four values.
        """
        num_values = num_box_values(box2box_transform)
        if self.box_reg_loss_type == "smooth_l1" and num_values != 4:
            raise ValueError(
                f"box_reg_loss_type smooth_l1 compares 4 values of a box, but "
                f"{type(box2box_transform).__name__} takes {num_values}"
            )
        super().bind(box2box_transform=box2box_transform, num_classes=num_classes)

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes ``loss_cls``, ``loss_box_reg`` and, if the head predicts a quality, its loss.

        ``loss_cls`` is the focal loss per positive, ``loss_box_reg`` the weighted mean over
        the positives; :attr:`quality_name` names the loss of the quality.
        """
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        loss_cls = sigmoid_focal_loss(
            logits,
            targets.labels.flatten(),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
        )
        positives = find_positives(predictions, targets, self.num_classes)
        quality, weights, totals = self._weigh(positives, targets)
        num_for_cls, num_positives, sum_weights = self.loss_normalizers(targets, totals)
        loss_box_reg = box_reg_loss(
            positives.regression,
            positives.anchors,
            positives.boxes,
            box2box_transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        loss_box_reg = (loss_box_reg * weights).sum()
        losses = {
            "loss_cls": loss_cls / num_for_cls,
            "loss_box_reg": loss_box_reg * (self.box_reg_loss_weight / sum_weights),
        }
        if positives.quality is not None:
            loss_quality = centerness_loss(positives.quality, quality) * positives.mask
            losses[f"loss_{self.quality_name}"] = loss_quality.sum() * (
                self.centerness_loss_weight / num_positives
            )
        return losses

    def loss_normalizers(
        self, targets: Targets, totals: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the normalizers of the losses of classes, of the quality and of boxes."""
        if targets.box_labels is not None:
            floors = (1, *DEFAULT_FLOORS)
            return self.normalizers(self._count(targets.labels), *totals, floors=floors)
        num_positives, sum_weights = self.normalizers(*totals)
        return num_positives, num_positives, sum_weights

    def _count(self, labels: Tensor) -> Tensor:
        """Returns the number of positives among labels (N, R), 0-dim."""
        if self.floor_per_image:
            return count_with_floor(labels, self.num_classes)
        return is_positive(labels, self.num_classes).sum()

    def _weigh(
        self, positives: Positives, targets: Targets
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Returns quality targets (P,), weights of the box losses (P,), and the totals."""
        quality = positives.soft  # (P,), as all from here on
        if quality is None:
            with torch.no_grad():
                quality = self.quality_targets(positives)
        quality = quality * positives.mask
        has_quality = positives.quality is not None or self.weighs_without_quality
        is_weighted = has_quality and self.centerness_weighted_box_loss
        weights = quality if is_weighted else positives.mask.to(quality.dtype)
        num_positives = positives.mask.sum()
        if self.floor_per_image:
            num_positives = count_with_floor(targets.labels_of_boxes, self.num_classes)
        return quality, weights, (num_positives, weights.sum())

    @torch.no_grad()
    def totals(self, targets: Targets, *, with_quality: bool) -> tuple[Tensor, Tensor]:
        """Returns the number of positives and the sum of the weights of their box losses."""
        shape = (*targets.labels.shape, num_box_values(self.box2box_transform))
        none = targets.boxes.new_zeros(1, 1, 1).expand(shape)  # (N, R, D)
        predictions = Predictions([], [none], [none[..., 0]] if with_quality else None)
        positives = find_positives(predictions, targets, self.num_classes)
        return self._weigh(positives, targets)[2]

    def quality_targets(self, positives: Positives) -> Tensor:
        """Returns targets (P,) in [0, 1] of the head's third output: centerness, no gradient."""
        return centerness_targets(positives.anchors, positives.boxes, self.centerness_inset)
