"""Losses whose class score learns the quality of the box: GFL, ATSS with VFL or MAL, and others.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), K classes, P anchors of the batch
that include all positives, B bins of a distribution.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from ..choices import check_choice
from ..distance_distributions import DistanceDistributions
from ..geometry import paired_iou
from ..nouns import Predictions, Targets
from ..training_log import TrainingLog
from .base import CRITERION_REGISTRY, Criterion
from .box_losses import BOX_IOU_LOSSES
from .centerness import centerness_targets
from .distribution_focal_loss import distribution_focal_loss, max_distance
from .positives import Positives, count_with_floor, find_positives
from .soft_target_losses import matchability_aware_loss, quality_focal_loss, varifocal_loss

logger = logging.getLogger(__name__)

_CLS_LOSSES = {
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
    "matchability_aware": matchability_aware_loss,
}
BOX_WEIGHTS = ("score", "quality", "centerness", "none")
NORMALIZED_BY = ("positives", "quality")
_TINY = 1e-6  # minimum of a sum of weights that its numerator vanishes with


@CRITERION_REGISTRY.register()
class SoftTargetCriterion(Criterion):
    """The score of a positive's class learns a quality, and is the score of the detection.

    The quality is the IoU of the predicted box with its target, unless the rule of sample selection
    returns soft targets. The defaults are GFL's (arXiv 2006.04388): quality focal loss, GIoU loss
    weighted by the score, and, if the box coder is :class:`DistanceDistributions`, distribution
    focal loss. ``cls_loss="varifocal"`` with ``box_weights="centerness"`` is ATSS with VFL (arXiv
    2008.13367, Table 1); both "quality", RTMDet's losses (arXiv 2212.07784).
    """

    uses_quality = False

    def __init__(
        self,
        *,
        cls_loss: str = "quality_focal",
        cls_loss_gamma: float | None = None,
        varifocal_alpha: float | None = None,
        box_reg_loss_type: str = "giou",
        box_reg_loss_weight: float = 2.0,
        box_weights: str = "score",
        distribution_loss_weight: float = 0.25,
        normalized_by: str = "positives",
        floor_per_image: bool = False,
        centerness_inset: float = 0.0,
    ) -> None:
        """
        Args:
            cls_loss: "quality_focal" (GFL), "varifocal" (VFNet) or "matchability_aware" (DEIM).
            cls_loss_gamma: Exponent of that loss. None: its own, 2, 2 or 1.5.
            varifocal_alpha: Weight of the background in the varifocal loss. None: its own, 0.75.
            box_reg_loss_type: "giou", "diou" or "ciou".
            box_reg_loss_weight: Weight of the box loss.
            box_weights: Weights of the positives in the losses of boxes: the highest "score" of
                the anchor (GFL), its "quality", its "centerness" target (ATSS), or "none".
            distribution_loss_weight: Weight of the distribution focal loss; without
                :class:`DistanceDistributions` there is none.
            normalized_by: Whether the classification loss is divided by the number of "positives",
                or by the sum of their "quality".
            floor_per_image: Whether an image without positives counts as one positive in the
                normalizer of the classification loss, as in mmdetection.
            centerness_inset: See :class:`ATSSCriterion`; of ``box_weights="centerness"``.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_choice("cls_loss", cls_loss, _CLS_LOSSES)
        check_choice("box_reg_loss_type", box_reg_loss_type, BOX_IOU_LOSSES)
        check_choice("box_weights", box_weights, BOX_WEIGHTS)
        check_choice("normalized_by", normalized_by, NORMALIZED_BY)
        if centerness_inset < 0:
            raise ValueError(f"centerness_inset must be >= 0, got {centerness_inset}")
        if varifocal_alpha is not None and cls_loss != "varifocal":
            raise ValueError(
                f"varifocal_alpha has no effect with cls_loss={cls_loss}: leave it out"
            )
        if floor_per_image and normalized_by == "quality":
            raise ValueError("floor_per_image has no effect with normalized_by=quality")
        options = {"gamma": cls_loss_gamma, "alpha": varifocal_alpha}
        options = {name: value for name, value in options.items() if value is not None}
        self._cls_loss = functools.partial(_CLS_LOSSES[cls_loss], **options)
        self.cls_loss = cls_loss
        self.box_reg_loss_type = box_reg_loss_type
        self.box_reg_loss_weight = box_reg_loss_weight
        self.box_weights = box_weights
        self.distribution_loss_weight = distribution_loss_weight
        self.normalized_by_name = normalized_by
        self.floor_per_image = floor_per_image
        self.centerness_inset = centerness_inset
        self._log = TrainingLog()
        self._has_warned = False

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes ``loss_cls``, ``loss_box_reg`` and, of distributions, ``loss_dfl``."""
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        labels = targets.labels.flatten()  # (N x R,)
        positives = find_positives(predictions, targets, self.num_classes)
        boxes = self.box2box_transform.apply_deltas(positives.regression, positives.anchors)
        with torch.no_grad():
            quality = self._quality(positives, boxes)  # (P,)
            weights = self._box_weights(positives, quality, logits)  # (P,)
            dense_quality = quality.new_zeros(labels.shape)
            dense_quality[positives.rows] = quality
        count, sum_weights = self.normalizers(
            self._count(positives, quality, targets),
            weights.sum(),
            floors=(1, _TINY if self.box_weights == "centerness" else 1),
        )
        loss_box_reg = BOX_IOU_LOSSES[self.box_reg_loss_type](boxes, positives.boxes)
        losses = {
            "loss_cls": self._cls_loss(logits, labels, dense_quality) / count,
            "loss_box_reg": (loss_box_reg * weights).sum()
            * (self.box_reg_loss_weight / sum_weights),
        }
        if isinstance(self.box2box_transform, DistanceDistributions):
            loss_dfl = (self._distribution_loss(positives) * weights).sum()
            losses["loss_dfl"] = loss_dfl * (self.distribution_loss_weight / sum_weights)
        return losses

    def _quality(self, positives: Positives, boxes: Tensor) -> Tensor:
        """Returns the targets (P,) of the scores, 0 for all but positives."""
        quality = positives.soft
        if quality is None:
            quality = paired_iou(boxes, positives.boxes)
        return torch.where(positives.mask, quality, 0.0)

    def _box_weights(self, positives: Positives, quality: Tensor, logits: Tensor) -> Tensor:
        """Returns the weights (P,) of the losses of boxes, 0 for all but positives."""
        if self.box_weights == "score":
            weights = logits[positives.rows].amax(dim=1).to(quality.dtype).sigmoid()
        elif self.box_weights == "centerness":
            anchors, boxes = positives.anchors, positives.boxes
            weights = centerness_targets(anchors, boxes, self.centerness_inset)
        elif self.box_weights == "quality":
            weights = quality
        else:
            weights = torch.ones_like(quality)
        return torch.where(positives.mask, weights, 0.0)

    def _count(self, positives: Positives, quality: Tensor, targets: Targets) -> Tensor:
        """Returns what the classification loss is divided by, of this process, 0-dim."""
        if self.normalized_by_name == "quality":
            return quality.sum()
        if self.floor_per_image:
            return count_with_floor(targets.labels, self.num_classes)
        return positives.mask.sum()

    def _distribution_loss(self, positives: Positives) -> Tensor:
        """Returns the distribution focal loss (P,), the mean of the four sides."""
        coder = self.box2box_transform
        distances = coder.get_deltas(positives.anchors, positives.boxes)  # (P, 4)
        self._report_too_far(distances, positives.mask, max_distance(coder.num_bins))
        logits = positives.regression.reshape(-1, coder.num_bins)  # (4 P, B)
        return distribution_focal_loss(logits, distances.flatten()).view(-1, 4).mean(dim=1)

    def _report_too_far(self, distances: Tensor, mask: Tensor, limit: float) -> None:
        """Logs how many positives have a side beyond the last bin, and warns of the first ones."""
        is_too_far = (distances > limit).any(dim=1) & mask
        self._log.put({"num_too_far": is_too_far.sum()}, self._warn_too_far)

    def _warn_too_far(self, values: dict[str, float]) -> None:
        if values["num_too_far"] and not self._has_warned:
            self._has_warned = True
            bins = self.box2box_transform.num_bins
            logger.warning(
                f"{values['num_too_far']:.0f} positives of a batch have a side farther from their "
                f"anchor than {max_distance(bins)} strides, which {bins} bins cannot predict; "
                "atss/num_too_far counts them. Set num_bins of box2box_transform, and 4 x as many "
                "num_box_values of the head (in yaml, MODEL.ATSS.DISTANCE_DISTRIBUTIONS.NUM_BINS), "
                "to more if your objects are larger than about "
                f"{2 * max_distance(bins):.0f} strides of the coarsest level"
            )
