"""Adaptive Training Sample Selection (Algorithm 1 of arXiv 1912.02424).

Shapes: N images, L levels, A anchors per location, Ri anchors of level i, R = sum(Ri), M boxes of
the batch, C = sum_i min(k A, Ri) candidates of one box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BACKGROUND, DenseMatcher, box_centers, center_margins, paired_iou

# Entries of the largest temporary matrix, (boxes of a chunk, anchors of a level): 128 MiB of
# int64. Boxes are taken in chunks, so memory does not grow with their number.
_MAX_CHUNK_ENTRIES = 2**24


class ATSSMatcher(DenseMatcher):
    """Positives of a box are the candidates near its centre whose IoU stands out.

    On each level the ``topk * num_anchors`` anchors whose centres are nearest to the centre of
    the box are candidates; the threshold is mean + standard deviation (unbiased) of the IoUs of
    the candidates of all levels; positive is a candidate with IoU >= threshold whose centre lies
    inside the box. An anchor that is positive for several boxes goes to the one with the highest
    IoU. All other anchors are background, none is ignored.

    Ties, the same on every device: among anchors at equal distance the lower index is the
    candidate, among boxes of equal IoU the lower index gets the anchor.

    Attributes:
        last_stats: ``mean_threshold``, the mean over the boxes of the last call (0 without boxes).
    """

    def __init__(
        self,
        *,
        topk: int = 9,
        num_anchors: int = 1,
        center_epsilon: float = 0.01,
        inset: float = 0.0,
        min_positives: int = 0,
    ) -> None:
        """
        Args:
            topk: k, candidates per level and anchor of a location (Sec. 3.2; 9 in the paper).
            num_anchors: A, anchors per location.
            center_epsilon: A centre is inside a box when its distances to all four sides are
                larger than this, in pixels.
            inset: Pixels taken off each of these distances. 0 is continuous geometry; 0.5
                reproduces the labels of the authors' inclusive-corner geometry.
            min_positives: 0 is the paper's rule, under which some boxes get no positive (tiny
                ones between anchor centres; ones whose threshold lies above their best IoU).
                n >= 1 also makes the n best candidates of every box of positive area positive
                (by IoU, then by distance within a level), wherever their centres lie. A box still
                loses them to boxes that overlap them more.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        for name, value, least in (
            ("topk", topk, 1),
            ("num_anchors", num_anchors, 1),
            ("inset", inset, 0),
            ("min_positives", min_positives, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.topk = topk
        self.num_anchors = num_anchors
        self.center_epsilon = center_epsilon
        self.inset = inset
        self.min_positives = min_positives

    def match(
        self, anchors: list[Tensor], boxes: Tensor, image_idxs: Tensor, num_images: int
    ) -> Tensor:
        candidates = self._nearest_anchors(anchors, boxes)  # (M, C) into the R anchors
        all_anchors = torch.cat(anchors)  # (R, 4)
        candidate_boxes = all_anchors[candidates]  # (M, C, 4)

        ious = paired_iou(candidate_boxes, boxes[:, None])  # (M, C)
        thresholds = _mean_plus_std(ious)  # (M,)
        margins = center_margins(box_centers(candidate_boxes), boxes[:, None]) - self.inset
        positive = (ious >= thresholds[:, None]) & (margins > self.center_epsilon)  # (M, C)
        if self.min_positives:
            positive |= self._best_candidates(ious, boxes)

        # "mean" of no boxes would be NaN; a sum over at least one is 0.
        self.last_stats["mean_threshold"] = thresholds.sum() / max(len(boxes), 1)
        return _resolve_conflicts(
            positive, ious, candidates, image_idxs, num_images, len(all_anchors)
        )

    def _nearest_anchors(self, anchors: list[Tensor], boxes: Tensor) -> Tensor:
        """Algorithm 1, lines 3 to 6: candidates (M, C) as indices into the R anchors."""
        centers = box_centers(boxes)  # (M, 2)
        candidates = []
        first = 0
        for level_anchors in anchors:
            num_level = len(level_anchors)
            k = min(self.topk * self.num_anchors, num_level)
            level_centers = box_centers(level_anchors)  # (Ri, 2)
            chunk = max(1, _MAX_CHUNK_ENTRIES // max(num_level, 1))
            nearest = [_k_nearest(c, level_centers, k) for c in centers.split(chunk)]
            candidates.append(torch.cat(nearest) + first)
            first += num_level
        return torch.cat(candidates, dim=1)

    def _best_candidates(self, ious: Tensor, boxes: Tensor) -> Tensor:
        """Mask (M, C) of the ``min_positives`` candidates of highest IoU of every real box."""
        count = min(self.min_positives, ious.shape[1])
        # A stable sort keeps the nearer candidate first among equal IoUs.
        best = ious.sort(dim=1, descending=True, stable=True).indices[:, :count]
        is_real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1, keepdim=True)  # (M, 1)
        return torch.zeros_like(ious, dtype=torch.bool).scatter(1, best, True) & is_real


def _k_nearest(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Indices (m, k) of the k centers (r, 2) nearest to each point (m, 2), lower index first.

    ``topk`` promises no order among equal values, so it runs on integer keys that are all
    different: non-negative floats sort like their bit patterns, the index fills the low bits.
    """
    delta = points[:, None] - centers  # (m, r, 2)
    distances = delta[..., 0].square() + delta[..., 1].square()  # (m, r)
    keys = distances.view(torch.int32).long() << 32
    keys += torch.arange(len(centers), device=centers.device)
    return keys.topk(k, dim=1, largest=False).indices


def _mean_plus_std(ious: Tensor) -> Tensor:
    """Algorithm 1, lines 7 to 10: thresholds (M,). The deviation of one candidate is 0.

    In float64, where the mean of equal IoUs is that IoU: a box that holds all of its candidates
    would otherwise get all or none of them by the rounding of a sum.
    """
    ious = ious.double()
    mean = ious.mean(dim=1, keepdim=True)  # (M, 1)
    variance = (ious - mean).square().sum(dim=1) / max(ious.shape[1] - 1, 1)
    return mean[:, 0] + variance.sqrt()


def _resolve_conflicts(
    positive: Tensor,
    ious: Tensor,
    candidates: Tensor,
    image_idxs: Tensor,
    num_images: int,
    num_anchors: int,
) -> Tensor:
    """Gives every anchor to the positive box of highest IoU: (N, R) index into the batch's boxes.

    One scatter-max over integer keys (IoU in the high bits, reversed box index in the low bits)
    settles all anchors of the batch, independent of the order of execution.
    """
    num_boxes = len(ious)
    device = ious.device
    reversed_idxs = num_boxes - 1 - torch.arange(num_boxes, device=device)  # (M,)
    bits = (ious + 0.0).view(torch.int32).long()  # + 0.0: the bits of -0.0 are a negative number
    keys = (bits << 32) | reversed_idxs[:, None]  # (M, C)
    keys = torch.where(positive, keys, -1)
    slots = candidates + (image_idxs * num_anchors)[:, None]  # (M, C) into N x R
    best = torch.full((num_images * num_anchors,), -1, dtype=torch.int64, device=device)
    best.scatter_reduce_(0, slots.flatten(), keys.flatten(), "amax")
    matched = num_boxes - 1 - (best & 0xFFFFFFFF)
    return torch.where(best >= 0, matched, BACKGROUND).view(num_images, num_anchors)
