"""Box coders: what the head regresses, relative to an anchor.

A box coder has ``get_deltas(anchors, boxes)`` and ``apply_deltas(deltas, anchors)``, both on (R, 4)
tensors in pixels, which are inverse to each other on valid boxes. A coder that takes D values for
an anchor, (R, D), instead of four has an attribute ``num_values``. Regression from a box uses
Detectron2's ``Box2BoxTransform`` (or :class:`TwoSidedBox2BoxTransform`), regression from a point
uses :class:`PointDistances`.
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
    """Returns how many values a box coder takes for an anchor: its ``num_values``, or 4."""
    return getattr(box_coder, "num_values", 4)


class TwoSidedBox2BoxTransform:
    """Detectron2's ``Box2BoxTransform`` with dw and dh clamped on both sides, as in mmdetection."""

    def __init__(self, weights: Sequence[float], scale_clamp: float = math.log(1000 / 16)) -> None:
        """
        Args:
            weights: Factors of (dx, dy, dw, dh).
            scale_clamp: Maximum |dw| and |dh| of a decoded box.
        """
        weights = tuple(weights)
        # Detectron2's coder is a TorchScript class, which cannot be subclassed.
        self._coder = Box2BoxTransform(weights=weights, scale_clamp=scale_clamp)
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Returns the deltas (R, 4) that turn anchors (R, 4) into boxes (R, 4)."""
        return self._coder.get_deltas(anchors, boxes)

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Returns the boxes (R, 4) that deltas (R, 4) make from anchors (R, 4)."""
        deltas = deltas.float()
        min_dw, min_dh = (-self.scale_clamp * weight for weight in self.weights[2:])
        dw, dh = deltas[:, 2].clamp(min=min_dw), deltas[:, 3].clamp(min=min_dh)
        deltas = torch.stack((deltas[:, 0], deltas[:, 1], dw, dh), dim=1)
        return self._coder.apply_deltas(deltas, anchors)


class PointDistances:
    """FCOS's coder: distances from the center of an anchor to the four sides of its box.

    Distances (left, top, right, bottom) are measured in strides. Only the center and the stride of
    an anchor matter, so there is one point per location: A = 1.
    """

    def __init__(
        self, *, anchor_scale: float = 8.0, inset: float = 0.0, clamp: bool = True
    ) -> None:
        """
        Args:
            anchor_scale: Side of an anchor (the square root of its area) in strides, from which the
                stride is computed. 8 in ATSS, 1 in Detectron2's FCOS.
            inset: Pixels subtracted from each of the four distances, see :class:`ATSSMatcher`: 0.5
                decodes the predictions of the authors' inclusive-corner geometry.
            clamp: Whether negative distances count as 0 when decoding; otherwise a box may lie
                beside its point.

        Raises:
            ValueError: ``anchor_scale`` is not positive, or ``inset`` is negative.
        """
        if anchor_scale <= 0:
            raise ValueError(f"anchor_scale must be > 0, got {anchor_scale}")
        if inset < 0:
            raise ValueError(f"inset must be >= 0, got {inset}")
        self.anchor_scale = anchor_scale
        self.inset = inset
        self.clamp = clamp

    def get_deltas(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Returns distances (R, 4) from anchors (R, 4) to boxes (R, 4); negative beyond a side."""
        centers, strides = self._points(anchors)
        return (side_distances(centers, boxes) - self.inset) / strides

    def apply_deltas(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Returns boxes (R, 4) at distances (R, 4) from anchors (R, 4), see ``clamp``."""
        centers, strides = self._points(anchors)
        distances = (deltas.relu() if self.clamp else deltas) * strides + self.inset
        return torch.cat((centers - distances[:, :2], centers + distances[:, 2:]), dim=1)

    def _points(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Returns centers (R, 2) and strides (R, 1)."""
        strides = box_areas(anchors).sqrt() / self.anchor_scale  # (R,)
        return box_centers(anchors), strides[:, None]


def __getattr__(name: str) -> None:
    raise missing_name(__name__, name)
