"""Merges the detections of one image by voting instead of suppression.

Overlapping detections form a group around the best of them, the leader; the mean of its members
becomes the box of the group. All classes are merged at once.

Shapes: D detections.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .precision import widen


def vote(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, iou_thresh: float = 0.66
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces each group of detections by one with its score-weighted mean box and best score.

    The detection with the highest score leads the group of all detections of its class whose IoU
    with it reaches ``iou_thresh``; the best remaining detection leads the next group. Of equal
    scores, the earlier detection ranks first. A group of one does not change.

    Args:
        boxes: (D, 4) XYXY, pixels.
        scores: (D,), not negative.
        classes: (D,) int64.
        iou_thresh: Minimum IoU between a leader and a member of its group.

    Returns:
        boxes, scores and classes of the groups, best score first. Geometry is in at least float32;
        time and memory are those of the D x D matrix of IoUs.
    """
    groups = _find_groups(boxes, scores, classes, iou_thresh)
    is_leader = groups.is_leader
    return groups.mean_boxes()[is_leader], groups.scores[is_leader], groups.classes[is_leader]


def soft_vote(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    iou_thresh: float = 0.66,
    score_thresh: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges like :func:`vote`, but keeps what a group absorbs, with a lower score.

    A member other than the leader keeps its own box with score x (1 - IoU with the leader), if this
    is at least ``score_thresh``.

    Args:
        boxes: (D, 4) XYXY, pixels.
        scores: (D,), not negative.
        classes: (D,) int64.
        iou_thresh: Minimum IoU between a leader and a member of its group.
        score_thresh: Minimum lowered score of a member that stays.

    Returns:
        boxes, scores and classes, best score first; see :func:`vote`.
    """
    groups = _find_groups(boxes, scores, classes, iou_thresh)
    lowered = groups.scores * (1 - groups.leader_ious)
    stays = ~groups.is_leader & (lowered >= score_thresh)
    boxes = torch.cat((groups.mean_boxes()[groups.is_leader], groups.boxes[stays]))
    scores = torch.cat((groups.scores[groups.is_leader], lowered[stays]))
    classes = torch.cat((groups.classes[groups.is_leader], groups.classes[stays]))
    scores, order = scores.sort(descending=True, stable=True)
    return boxes[order], scores, classes[order]


class _Groups(NamedTuple):
    """Detections, best score first, and the groups that they form."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,)
    classes: Tensor  # (D,)
    leaders: Tensor  # (D,) index of the leader of the group; a leader's own
    leader_ious: Tensor  # (D,) IoU with that leader

    @property
    def is_leader(self) -> Tensor:
        return self.leaders == torch.arange(len(self.leaders), device=self.leaders.device)

    def mean_boxes(self) -> Tensor:
        """Returns (D, 4): the score-weighted mean of the boxes that a detection leads."""
        # A group whose scores are all 0 also has a mean.
        weights = self.scores.clamp(min=torch.finfo(self.scores.dtype).eps)[:, None]
        # Differences from the leader: exact for a group of one, and the sum is of small numbers.
        offsets = weights * (self.boxes - self.boxes[self.leaders])
        sums = torch.zeros_like(self.boxes).index_add_(0, self.leaders, offsets)
        totals = torch.zeros_like(weights).index_add_(0, self.leaders, weights)
        return torch.where(totals > 0, self.boxes + sums / totals, self.boxes)


def _find_groups(boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> _Groups:
    """Sorts the detections and finds their leaders.

    A detection leads unless its IoU with an earlier leader reaches ``iou_thresh``: greedy NMS keeps
    the same detections. Leaders are found from the matrix of IoUs that the groups need anyway, so
    that both agree to the last bit: torchvision's NMS suppresses above the threshold instead of at
    it, and its IoU is rounded differently on some devices.
    """
    scores, order = widen(scores).sort(descending=True, stable=True)
    boxes, classes = widen(boxes)[order], classes[order]
    ious = pairwise_iou(Boxes(boxes), Boxes(boxes))  # (D, D)
    # [i, j]: i comes before j and takes it if i is a leader.
    takes = ((ious >= iou_thresh) & (classes[:, None] == classes)).triu(diagonal=1)
    # Each round settles the next member of every chain "a takes b, which would have taken c"; the
    # few rounds that the longest chain needs run for all classes at once.
    is_leader = torch.ones_like(classes, dtype=torch.bool)
    while True:
        previous, is_leader = is_leader, ~(takes & is_leader[:, None]).any(dim=0)
        if torch.equal(is_leader, previous):
            break
    takes = takes & is_leader[:, None]
    takes |= torch.diag(is_leader)
    # The first of several leaders, which is the best: argmax returns the first of equal values.
    leaders = takes.byte().argmax(dim=0) if len(boxes) else torch.zeros_like(classes)
    leader_ious = ious[leaders, torch.arange(len(leaders), device=leaders.device)]
    return _Groups(boxes, scores, classes, leaders, leader_ious)
