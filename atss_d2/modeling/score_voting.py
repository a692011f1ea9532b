"""Score voting: boxes that NMS keeps become means of what it removed (PAA, arXiv 2007.08103).

Shapes: D detections, T pre-NMS detections; both may have further leading dimensions, as (N, D).
"""

from __future__ import annotations

from torch import Tensor

from .geometry import paired_iou
from .precision import widen

_LEAST_IOU = 0.01  # above which a pre-NMS detection has a vote


def vote_by_scores(
    boxes: Tensor,
    classes: Tensor,
    voter_boxes: Tensor,
    voter_scores: Tensor,
    voter_classes: Tensor,
    *,
    sigma: float = 0.025,
) -> Tensor:
    """Replaces each box by the mean of the boxes of its class that overlap it (Sec. 3.4, Eq. 14).

    The weight of a box in the mean is its score x exp(-(1 - IoU)^2 / sigma). No shape depends on a
    value, so that the function can be exported.

    Args:
        boxes: (D, 4) XYXY in pixels, of detections that NMS has kept.
        classes: (D,) int64.
        voter_boxes: (T, 4) XYXY in pixels, of all pre-NMS detections of the image.
        voter_scores: (T,); a negative score, such as :data:`.NO_SCORE`, gives no vote.
        voter_classes: (T,) int64.
        sigma: How quickly votes lose weight with distance.

    Returns:
        Boxes (D, 4), in at least float32. A box that nothing votes for, such as one without area,
        does not change.
    """
    boxes, voters = widen(boxes)[..., :, None, :], widen(voter_boxes)[..., None, :, :]
    ious = paired_iou(boxes, voters)  # (D, T)
    weights = widen(voter_scores).clamp(min=0)[..., None, :] * (-(1 - ious).square() / sigma).exp()
    has_vote = (ious > _LEAST_IOU) & (classes[..., :, None] == voter_classes[..., None, :])
    weights = (weights * has_vote)[..., None]  # (D, T, 1)
    # Differences from the box: of a box that votes alone, the mean is exact.
    sums = (weights * (voters - boxes)).sum(dim=-2)  # (D, 4)
    totals = weights.sum(dim=-2)
    return boxes[..., 0, :] + sums / totals.masked_fill(totals <= 0, 1)
