"""A box coder whose values are distributions of distances (GFL, arXiv 2006.04388).

Shapes: R anchors, B bins of a side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .box_coding import PointDistances
from .precision import widen


class DistanceDistributions(nn.Module):
    """Distances to the four sides as means of distributions over the bins 0, 1, ..., B - 1.

    The values of an anchor are the logits of its distributions, left, top, right, bottom, B each.
    Distances are in strides, as those of :class:`PointDistances`: with 17 bins, a side can be at
    most 16 strides away from the anchor's center, and 15.9 is the farthest that is learned.
    """

    def __init__(self, *, num_bins: int = 17, anchor_scale: float = 8.0) -> None:
        """
        Args:
            num_bins: B; reg_max + 1 of GFL.
            anchor_scale: See :class:`PointDistances`.

        Raises:
            ValueError: ``num_bins`` is below 2, or another argument is out of range.
        """
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins must be >= 2, got {num_bins}")
        self.num_bins = num_bins
        self.num_values = 4 * num_bins
        self.anchor_scale = anchor_scale
        self.points = PointDistances(anchor_scale=anchor_scale)
        # A buffer moves with the model and is stored once in exports; it is not a weight.
        self.register_buffer("bins", torch.arange(float(num_bins)), persistent=False)

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Returns the distances (R, 4) that the distributions are to have as their means."""
        return self.points.get_deltas(anchors, boxes)

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Returns the boxes (R, 4) of logits (R, 4 B); half precision is computed in float32."""
        deltas = widen(deltas)
        p = deltas.unflatten(1, (4, self.num_bins)).softmax(dim=2)  # (R, 4, B)
        return self.points.apply_deltas(p @ self.bins.to(deltas.dtype), anchors)
