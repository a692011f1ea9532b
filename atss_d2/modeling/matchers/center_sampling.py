"""Selection near the center of an object: FCOS with center sampling, "ATSS-lite".

Shapes: Ri anchors of level i, m boxes of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import box_centers
from .base import MATCHER_REGISTRY
from .scale_range import ScaleRangeMatcher
from .selection import nearest_anchors


@MATCHER_REGISTRY.register()
class CenterSamplingMatcher(ScaleRangeMatcher):
    """FCOS's rule (:class:`ScaleRangeMatcher`), restricted to anchors near the center of the box.

    Besides the conditions of FCOS's rule, a positive must be near the center in one of two senses:

    - ``radius``: the center of the anchor lies in the square of ``radius`` strides to each side of
      the center of the box, clipped to the box (FCOS's later versions). Detectron2's FCOS differs
      only in edge cases: there, a distance exactly at the end of a range belongs to neither of the
      two adjacent levels, ``center_epsilon`` is 0, boxes above 1e8 square pixels get no positives,
      and areas are compared in steps of 8 square pixels.
    - ``topk``: the anchor is one of the ``topk`` of its level whose centers are nearest to that of
      the box; at equal distance, the lower index (the paper's Table 3, "center sampling").

    Conflicts are resolved as in FCOS's rule: the smallest area wins; of equal areas, the lower
    index.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] | None = None,
        radius: float | None = 1.5,
        topk: int | None = None,
        range_factor: float = 8.0,
        center_epsilon: float = 0.01,
        inset: float = 0.0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            strides: See :class:`ScaleRangeMatcher`.
            radius: Half the side of the sampling square, in strides; None with ``topk``.
            topk: Candidates per level, counted in anchors: k A for A anchors per location. None
                with ``radius``.
            range_factor: See :class:`ScaleRangeMatcher`.
            center_epsilon: A center is inside a box or a sampling square when its distances to all
                sides are larger than this, in pixels.
            inset: Pixels subtracted from the four distances to the box, see :class:`ATSSMatcher`.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range, or ``radius`` and ``topk`` are both given or
                both None.
        """
        super().__init__(
            strides=strides,
            range_factor=range_factor,
            center_epsilon=center_epsilon,
            inset=inset,
            ignore_ioa_thresh=ignore_ioa_thresh,
        )
        if (radius is None) == (topk is None):
            raise ValueError(
                f"give exactly one of radius and topk and set the other to None, got "
                f"radius={radius}, topk={topk}"
            )
        if radius is not None and radius <= 0:
            raise ValueError(f"radius must be > 0, got {radius}")
        if topk is not None and topk < 1:
            raise ValueError(f"topk must be >= 1, got {topk}")
        self.radius = radius
        self.topk = topk

    def _is_positive(self, level: int, centers: Tensor, boxes: Tensor) -> Tensor:
        positive = super()._is_positive(level, centers, boxes)  # (m, Ri)
        points = box_centers(boxes)  # (m, 2)
        if self.topk is not None:
            nearest = nearest_anchors(points, centers, min(self.topk, len(centers)))
            return positive & torch.zeros_like(positive).scatter_(1, nearest, True)
        offsets = (centers - points[:, None]).abs().amax(dim=-1)  # (m, Ri)
        return positive & (self.radius * self._strides()[level] - offsets > self.center_epsilon)
