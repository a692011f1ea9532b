"""A distribution of 17 values for each side of a box (GFL, arXiv 2006.04388).

A box coder, a criterion, and what they change in the config of a detector: all that a user writes.

Shapes: N images, R anchors, K classes, P anchors of the batch, all positives among them, B bins.
"""

from __future__ import annotations

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import Tensor, nn

from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import Criterion
from atss_d2.modeling.criterion.box_losses import giou_loss
from atss_d2.modeling.criterion.positives import find_positives, loss_normalizers
from atss_d2.modeling.geometry import paired_iou
from atss_d2.modeling.nouns import Predictions, Targets
from tests.extensions.soft import quality_focal_loss


class DistanceDistributions(nn.Module):
    """Distances to the sides, in strides, as means of distributions over 0, 1, ..., B - 1."""

    def __init__(self, *, num_bins: int = 17, anchor_scale: float = 8.0) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.num_values = 4 * num_bins
        self.distances = PointDistances(anchor_scale=anchor_scale)
        self.register_buffer("project", torch.arange(float(num_bins)))  # as in mmdetection's files

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Distances (R, 4), which the distributions are to have as their means."""
        return self.distances.get_deltas(anchors, boxes)

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (R, 4) of logits (R, 4 B), side by side."""
        bins = deltas.unflatten(1, (4, self.num_bins)).softmax(dim=2)  # (R, 4, B)
        return self.distances.apply_deltas(bins @ self.project.to(bins.dtype), anchors)


class GeneralizedFocalCriterion(Criterion):
    """Quality focal loss, GIoU loss and distribution focal loss, weighted by the best score."""

    def __init__(self, *, box_loss_weight: float = 2.0, distribution_weight: float = 0.25) -> None:
        super().__init__()
        self.box_loss_weight = box_loss_weight
        self.distribution_weight = distribution_weight

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        labels = targets.labels.flatten()
        positives = find_positives(predictions, targets, self.num_classes)
        coder = self.box2box_transform
        boxes = coder.apply_deltas(positives.regression, positives.anchors)  # (P, 4)
        with torch.no_grad():
            ious = paired_iou(boxes, positives.boxes) * positives.mask  # (P,)
            quality = ious.new_zeros(len(labels))
            quality[positives.rows] = ious
            weights = logits[positives.rows].amax(dim=1).float().sigmoid() * positives.mask
        num_positives, sum_weights = loss_normalizers(
            positives.mask.sum(), weights.sum(), floors=[1, 1]
        )
        loss_box_reg = (giou_loss(boxes, positives.boxes) * weights).sum()
        distances = coder.get_deltas(positives.anchors, positives.boxes)  # (P, 4)
        logits_of_sides = positives.regression.view(-1, coder.num_bins)  # (P x 4, B)
        loss_dfl = distribution_focal_loss(logits_of_sides, distances.flatten())
        loss_dfl = (loss_dfl.view(-1, 4).mean(dim=1) * weights).sum()
        return {
            "loss_cls": quality_focal_loss(logits, labels, quality) / num_positives,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / sum_weights),
            "loss_dfl": loss_dfl * (self.distribution_weight / sum_weights),
        }


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross entropies (R,) with the two bins around each distance, the nearer one weighing more.

    Args:
        logits: (R, B).
        distances: (R,); those beyond the last bin are cut off just before it.
    """
    distances = distances.clamp(0, logits.shape[1] - 1.1)
    lower = distances.long()
    log_p = logits.log_softmax(dim=1)
    log_lower, log_upper = (log_p.gather(1, bins[:, None])[:, 0] for bins in (lower, lower + 1))
    return -((lower + 1 - distances) * log_lower + (distances - lower) * log_upper)


def change(model: DictConfig) -> None:
    """Makes the node of an ATSS in a LazyConfig one of GFL."""
    model.box2box_transform = L(DistanceDistributions)()
    model.criterion = L(GeneralizedFocalCriterion)()
    model.head.update(with_centerness=False, num_box_values=4 * 17)
