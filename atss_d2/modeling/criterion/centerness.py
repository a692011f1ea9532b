"""Centerness: how far a point is from the middle of its box (FCOS, Sec. 3.2).

Shapes: R anchors (of one image or of a whole batch).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import box_centers, side_distances
from ..precision import widen


def centerness_targets(anchors: Tensor, boxes: Tensor, inset: float = 0.0) -> Tensor:
    """Computes the centerness (R,) in [0, 1] of anchor centers in their boxes (FCOS, Eq. 3).

    Args:
        anchors: (R, 4) XYXY, pixels.
        boxes: (R, 4) XYXY box of each anchor, pixels.
        inset: Pixels subtracted from each of the four distances, see :class:`ATSSMatcher`.

    Returns:
        sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)); 0 for a center outside its box.
    """
    distances = (side_distances(box_centers(anchors), boxes) - inset).clamp(min=0)  # (R, 4)
    to_lower, to_upper = distances.split(2, dim=1)  # (R, 2): left, top; right, bottom
    shorter, longer = torch.minimum(to_lower, to_upper), torch.maximum(to_lower, to_upper)
    ratios = shorter / longer.clamp(min=1e-12)  # 0 where both are
    horizontal, vertical = ratios.unbind(dim=1)
    return (horizontal * vertical).sqrt()


def centerness_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the binary cross entropy (R,) of centerness logits (R,) and targets (R,)."""
    return F.binary_cross_entropy_with_logits(widen(logits), targets, reduction="none")
