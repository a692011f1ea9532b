"""Box coders: what the head regresses, relative to an anchor.

A box coder has ``get_deltas(anchors, boxes)`` and ``apply_deltas(deltas, anchors)``, both on
(R, 4) tensors in pixels, and is its own inverse on valid boxes. One that takes other than four
values for an anchor, (R, D), says so as ``num_values``. Regression from a box is Detectron2's
``Box2BoxTransform`` (or :class:`TwoSidedBox2BoxTransform`), regression from a point is
:class:`PointDistances`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from ..config.renames import missing_name
from .geometry import box_areas, box_centers, side_distances


def num_box_values(box_coder) -> int:
    """Number of values that a box coder takes for an anchor: its ``num_values``, else 4."""
    return getattr(box_coder, "num_values", 4)


class TwoSidedBox2BoxTransform:
    """Detectron2's ``Box2BoxTransform`` with dw and dh clamped on both sides, as in mmdetection."""

    def __init__(self, weights: Sequence[float], scale_clamp: float = math.log(1000 / 16)) -> None:
        """
        Args:
            weights: Factors of (dx, dy, dw, dh).
            scale_clamp: Largest |dw| and |dh| of a decoded box.
        """
        weights = tuple(weights)
        # Detectron2's is a TorchScript class, from which no other can be derived.
        self._coder = Box2BoxTransform(weights=weights, scale_clamp=scale_clamp)
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4) that turn anchors (R, 4) into boxes (R, 4)."""
        return self._coder.get_deltas(anchors, boxes)

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (R, 4) of deltas (R, 4) from anchors (R, 4)."""
        deltas = deltas.float()
        min_dw, min_dh = (-self.scale_clamp * weight for weight in self.weights[2:])
        dw, dh = deltas[:, 2].clamp(min=min_dw), deltas[:, 3].clamp(min=min_dh)
        deltas = torch.stack((deltas[:, 0], deltas[:, 1], dw, dh), dim=1)
        return self._coder.apply_deltas(deltas, anchors)


class PointDistances:
    """FCOS's coder: distances from the center of an anchor to the four sides of its box.

    Distances (left, top, right, bottom) are measured in strides. Of the anchor only the center
    and the stride matter, so there is one point per location: A = 1.
    """

    def __init__(self, *, anchor_scale: float = 8.0, inset: float = 0.0) -> None:
        """
        Args:
            anchor_scale: Side of an anchor in strides, the square root of its area; tells the
                stride from the anchor. 8 in ATSS, 1 in Detectron2's FCOS.
            inset: Pixels taken off each of the four distances, see :class:`ATSSMatcher`: 0.5
                decodes the predictions of the authors' inclusive-corner geometry.

        Raises:
            ValueError: ``anchor_scale`` is not positive, or ``inset`` is negative.
        """
        if anchor_scale <= 0:
            raise ValueError(f"anchor_scale must be > 0, got {anchor_scale}")
        if inset < 0:
            raise ValueError(f"inset must be >= 0, got {inset}")
        self.anchor_scale = anchor_scale
        self.inset = inset

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Distances (R, 4) from anchors (R, 4) to boxes (R, 4); negative beyond a side."""
        centers, strides = self._points(anchors)
        return (side_distances(centers, boxes) - self.inset) / strides

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (R, 4) at distances (R, 4) from anchors (R, 4); negative ones count as 0."""
        centers, strides = self._points(anchors)
        distances = deltas.relu() * strides + self.inset
        return torch.cat((centers - distances[:, :2], centers + distances[:, 2:]), dim=1)

    def _points(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Centers (R, 2) and strides (R, 1)."""
        strides = box_areas(anchors).sqrt() / self.anchor_scale  # (R,)
        return box_centers(anchors), strides[:, None]


def __getattr__(name: str) -> None:
    raise missing_name(__name__, name)
