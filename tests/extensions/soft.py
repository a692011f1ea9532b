"""Selection by predictions with soft targets: task alignment (TOOD, arXiv 2108.07755, Sec. 3.3).

A rule, a criterion, and what they change in the config of a detector: all that a user writes. The
package has the same rule, :class:`atss_d2.modeling.TaskAlignedMatcher`, which compares fewer pairs.

Shapes: N images, R anchors, K classes, M boxes of the batch, m boxes of a chunk, C candidates of a
box, P anchors of the batch, all positives among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import Tensor

from atss_d2.modeling import ATSSMatcher, DenseMatcher
from atss_d2.modeling.criterion import ATSSCriterion, Criterion
from atss_d2.modeling.criterion.box_losses import giou_loss
from atss_d2.modeling.criterion.positives import find_positives, loss_normalizers
from atss_d2.modeling.geometry import box_centers, has_area, least_side_distance, paired_iou
from atss_d2.modeling.matchers.selection import (
    box_chunks,
    priority_keys,
    resolve_conflicts,
    stable_topk,
)
from atss_d2.modeling.nouns import Assignment, Predictions, Scene, Targets


class TaskAlignedMatcher(DenseMatcher):
    """Positives of a box are the anchors whose prediction fits it best, in class and in place.

    A candidate's alignment is p^alpha u^beta: p the score of the box's class, u the IoU of the
    predicted box. The ``topk`` best of all levels are positive if their centers lie inside the
    box; an anchor that several boxes want goes to the one of highest u. Soft targets are the
    alignments, scaled so that the best positive of a box has the best u of its positives.
    """

    needs_predictions = True

    def __init__(
        self,
        *,
        topk: int = 13,
        alpha: float = 1.0,
        beta: float = 6.0,
        warm_up: DenseMatcher | None = None,
        warm_up_iterations: int = 0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.warm_up = warm_up
        self.warm_up_iterations = warm_up_iterations

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:
        if self.warm_up is not None:
            self.warm_up.bind(num_anchors, strides)

    def match(self, scene: Scene) -> Assignment | Tensor:
        is_training = self.warm_up is not None and scene.iteration is not None
        if is_training and scene.iteration < self.warm_up_iterations:
            return self.warm_up.match(scene)
        anchors, boxes, image_idxs = torch.cat(scene.anchors), scene.boxes, scene.image_idxs
        candidates, alignments, ious = self._candidates(scene, len(anchors))  # (M, C)
        margins = least_side_distance(box_centers(anchors)[candidates], boxes[:, None])
        positive = (alignments > 0) & (margins > 0.01) & has_area(boxes)[:, None]
        box_idxs = torch.arange(len(boxes), device=boxes.device)[:, None]
        keys = priority_keys(ious, box_idxs)
        matched = resolve_conflicts(
            candidates, positive, keys, image_idxs, scene.num_images, len(anchors)
        )
        has_won = positive & (matched[image_idxs[:, None], candidates] == box_idxs)
        alignments, ious = alignments * has_won, ious * has_won
        scales = ious.amax(dim=1) / (alignments.amax(dim=1) + 1e-7)  # (M,)
        soft = torch.zeros_like(matched, dtype=torch.float32).flatten()
        slots = candidates + (image_idxs * len(anchors))[:, None]
        soft.index_add_(0, slots.flatten(), (alignments * scales[:, None]).flatten())
        soft = soft.view_as(matched)
        return Assignment(matched, soft, {"sum_soft": soft.sum() / max(scene.num_images, 1)})

    def _candidates(self, scene: Scene, num_anchors: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``topk`` anchors of best alignment of each box, alignments and IoUs: (M, C) each."""
        chunks = []
        for rows in box_chunks(scene.boxes, num_anchors):
            images, classes = scene.image_idxs[rows], scene.classes[rows]
            ious = paired_iou(scene.predictions.boxes[images], scene.boxes[rows, None])  # (m, R)
            scores = scene.predictions.logits[images, :, classes].sigmoid()
            # Predictions that have overflowed align with nothing.
            ious = ious.nan_to_num(0.0, 0.0, 0.0)
            alignments = (scores**self.alpha * ious**self.beta).nan_to_num(0.0, 0.0, 0.0)
            best = stable_topk(alignments, min(self.topk, num_anchors), largest=True)
            chunks.append((best, alignments.gather(1, best), ious.gather(1, best)))
        return tuple(map(torch.cat, zip(*chunks)))


class TaskAlignedCriterion(Criterion):
    """Quality focal loss of the soft targets, and GIoU loss weighted by them; ATSS's without."""

    def __init__(self, *, beta: float = 2.0, box_loss_weight: float = 2.0) -> None:
        super().__init__()
        self.beta = beta
        self.box_loss_weight = box_loss_weight
        self.warm_up = ATSSCriterion()

    def bind(self, **parts: Any) -> None:
        super().bind(**parts)
        self.warm_up.bind(**parts)

    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        if targets.soft is None:
            return self.warm_up.compute(predictions, targets)
        logits = torch.cat(predictions.logits, dim=1).flatten(0, 1)  # (N x R, K)
        positives = find_positives(predictions, targets, self.num_classes)
        (total,) = loss_normalizers(targets.soft.sum(), floors=[1])
        loss_cls = quality_focal_loss(
            logits, targets.labels.flatten(), targets.soft.flatten(), self.beta
        )
        boxes = self.box2box_transform.apply_deltas(positives.regression, positives.anchors)
        loss_box_reg = (giou_loss(boxes, positives.boxes) * positives.soft * positives.mask).sum()
        return {
            "loss_cls": loss_cls / total,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / total),
        }


def quality_focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0
) -> Tensor:
    """Sum of |y - p|^beta BCE(p, y); y is ``quality`` (R,) at the class of a positive, else 0.

    Args:
        logits: (R, K).
        labels: (R,); K for background, -1 for ignored anchors.
        quality: (R,), 0 for all but the positives.
        beta: Exponent of the modulating factor.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    one_hot = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    targets = torch.where(one_hot, quality[:, None].to(logits), 0.0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    losses = (targets - logits.sigmoid()).abs() ** beta * cross_entropy
    return torch.where(labels[:, None] >= 0, losses, 0.0).sum()


def change(model: DictConfig) -> None:
    """Makes the node of an ATSS in a LazyConfig a task-aligned one."""
    model.matcher = L(TaskAlignedMatcher)(warm_up=L(ATSSMatcher)(topk=9), warm_up_iterations=10)
    model.criterion = L(TaskAlignedCriterion)()
    model.head.with_centerness = False
