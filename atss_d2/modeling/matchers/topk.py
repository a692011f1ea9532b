"""Selection of a fixed number of anchors by IoU.

Shapes: R anchors of all levels, M boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import DenseMatcher
from .geometry import paired_iou
from .selection import box_chunks, priority_keys, settle, stable_topk


class TopKMatcher(DenseMatcher):
    """Positives of a box are the ``topk`` anchors of highest IoU over all levels.

    The authors' release has this rule for comparison. Anchors that do not overlap the box are
    none of them. An anchor that is positive for several boxes goes to the one with the highest
    IoU. All other anchors are background, none is ignored.

    Ties, the same on every device: among anchors of equal IoU the lower index is taken, among
    boxes of equal IoU the lower index gets the anchor.
    """

    def __init__(self, *, topk: int = 9, ignore_iof_thresh: float | None = None) -> None:
        """
        Args:
            topk: Anchors per box.
            ignore_iof_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_iof_thresh=ignore_iof_thresh)
        if topk < 1:
            raise ValueError(f"topk must be >= 1, got {topk}")
        self.topk = topk

    def match(
        self, anchors: list[Tensor], boxes: Tensor, image_idxs: Tensor, num_images: int
    ) -> Tensor:
        all_anchors = torch.cat(anchors)  # (R, 4)
        k = min(self.topk, len(all_anchors))
        candidates, candidate_ious = [], []
        for rows in box_chunks(boxes, len(all_anchors)):
            ious = paired_iou(all_anchors, boxes[rows, None])  # (m, R)
            candidates.append(stable_topk(ious, k, largest=True))  # (m, k)
            candidate_ious.append(ious.gather(1, candidates[-1]))
        ious = torch.cat(candidate_ious)  # (M, k)
        keys = priority_keys(ious, torch.arange(len(boxes), device=boxes.device)[:, None])
        return settle(
            torch.cat(candidates), ious > 0, keys, image_idxs, num_images, len(all_anchors)
        )
