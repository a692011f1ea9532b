"""The loss of a distribution over the distances to a side of a box (GFL, arXiv 2006.04388).

Shapes: R sides, B bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import widen

# Distances are cut off before the last bin, so that a bin above the distance always exists.
_BELOW_LAST_BIN = 0.1


def max_distance(num_bins: int) -> float:
    """Returns the largest distance that a distribution over the bins 0, 1, ..., B - 1 learns."""
    return num_bins - 1 - _BELOW_LAST_BIN


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Computes the cross entropies (R,) with the two bins around each distance (Eq. 6).

    The bins are weighted linearly, so that the distance is the mean of the best distribution.

    Args:
        logits: (R, B), half precision is computed in float32.
        distances: (R,) in bins; those outside 0..:func:`max_distance` count as the nearest end.
    """
    log_p = widen(logits).log_softmax(dim=1)
    distances = distances.to(log_p).clamp(0, max_distance(logits.shape[1]))
    lower = distances.floor()
    bins = lower.long()[:, None] + torch.arange(2, device=logits.device)  # (R, 2)
    log_lower, log_upper = log_p.gather(1, bins).unbind(dim=1)
    return (distances - lower - 1) * log_lower + (lower - distances) * log_upper
