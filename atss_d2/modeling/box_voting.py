"""Merges the detections of one image by voting instead of suppression.

Overlapping detections form a group around the best of them, the leader; the mean of its members
becomes the box of the group. Classes are taken apart: only detections of a class, and the few
hundred of a block, are compared.

Shapes: D detections, B of a block, P earlier leaders of its first class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .precision import widen

_BLOCK = 512  # detections that are compared with each other at a time


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
        memory grows with the number of detections, time with the square of that of a class.
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
    the same detections. Leaders are found from the IoUs that the groups need anyway, so that both
    agree to the last bit: torchvision's NMS suppresses above the threshold instead of at it, and
    its IoU is rounded differently on some devices.

    Sorted by class, detections are settled a block at a time: each is compared with its block and
    with the earlier leaders of the class that a block continues.
    """
    scores, order = widen(scores).sort(descending=True, stable=True)
    boxes, classes = widen(boxes)[order], classes[order]
    by_class = classes.argsort(stable=True)  # (D,), best first within a class
    sorted_boxes, sorted_classes = boxes[by_class], classes[by_class]
    positions = torch.arange(len(classes), device=classes.device)
    leaders, leader_ious = torch.empty_like(positions), torch.empty_like(scores)  # by class
    firsts = torch.searchsorted(sorted_classes, sorted_classes[::_BLOCK].contiguous()).tolist()
    for first, start in zip(firsts, range(0, len(classes), _BLOCK)):
        block = positions[start : start + _BLOCK]  # (B,)
        earlier = positions[first:start]
        earlier = earlier[leaders[first:start] == earlier]
        takers = torch.cat((earlier, block))  # (P + B,)
        ious = pairwise_iou(Boxes(sorted_boxes[takers]), Boxes(sorted_boxes[block]))  # (P + B, B)
        is_taken = ious >= iou_thresh
        is_taken &= sorted_classes[takers][:, None] == sorted_classes[block]
        is_taken &= takers[:, None] < block
        taker = _first_leader(is_taken)
        leaders[block], leader_ious[block] = takers[taker], ious[taker, block - start]
    # Back to the order of scores.
    leaders = torch.empty_like(leaders).index_copy_(0, by_class, by_class[leaders])
    leader_ious = torch.empty_like(leader_ious).index_copy_(0, by_class, leader_ious)
    return _Groups(boxes, scores, classes, leaders, leader_ious)


def _first_leader(is_taken: Tensor) -> Tensor:
    """Returns for each detection of a block (B,) the row of its leader; a leader's is its own.

    Args:
        is_taken: (P + B, B), whether a row takes a column if it is a leader: P leaders, then the
            detections of the block, which only take later ones.
    """
    num_rows, num = is_taken.shape
    is_leader = is_taken.new_ones(num_rows)
    # Each round settles the next member of every chain "a takes b, which would have taken c"; the
    # few rounds that the longest chain needs run for all classes at once.
    while True:
        previous = is_leader
        is_leader = is_leader.clone()
        is_leader[num_rows - num :] = ~(is_taken & previous[:, None]).any(dim=0)
        if torch.equal(is_leader, previous):
            break
    is_taken = is_taken & is_leader[:, None]
    is_taken[num_rows - num :].diagonal().copy_(is_leader[num_rows - num :])
    # The first of several leaders, which is the best: argmax returns the first of equal values.
    return is_taken.byte().argmax(dim=0)
