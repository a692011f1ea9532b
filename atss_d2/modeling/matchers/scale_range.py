"""Selection by place and size: FCOS's spatial and scale constraint (arXiv 1904.01355, Sec. 3.2).

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), M boxes of the batch, m boxes of a
chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import box_areas, box_centers, side_distance_bounds
from ..nouns import Scene
from .base import MATCHER_REGISTRY, DenseMatcher, bound_value
from .selection import DenseConflicts, box_chunks, priority_keys

_STRIDES_OF_FCOS = (8, 16, 32, 64, 128)


@MATCHER_REGISTRY.register()
class ScaleRangeMatcher(DenseMatcher):
    """Selects the anchors inside a box, on the level that its size belongs to.

    An anchor is positive when its center lies inside the box and the largest distance from the
    center to the four sides is in the range of its level: from ``range_factor`` times the stride of
    the previous level (no minimum on the first level) to ``range_factor`` times its own stride (no
    maximum on the last level). With the default arguments, the ranges are up to 64, 64 to 128, 128
    to 256, 256 to 512, and from 512 pixels. Both ends belong to the range (FCOS, Sec. 3.2: a
    location is negative *below* the lower end or *above* the upper one), so anchors at exactly 64
    pixels are positive on two levels. An anchor that is positive for several boxes goes to the one
    with the smallest area; of equal areas, to the lower index. All other anchors are background;
    none is ignored.

    Only the centers of the anchors matter; the anchors of one location get the same label.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] | None = None,
        range_factor: float = 8.0,
        center_epsilon: float = 0.01,
        inset: float = 0.0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            strides: Strides of the L levels in pixels, ascending. None: those of the model, or
                FCOS's 8, 16, 32, 64, 128 outside a model.
            range_factor: Upper end of the range of a level, in its strides.
            center_epsilon: A center is inside a box when its distances to all four sides are
                larger than this, in pixels.
            inset: Pixels subtracted from each of the four distances, see :class:`ATSSMatcher`.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        if strides is not None:
            strides = tuple(strides)
            ascending = all(a < b for a, b in itertools.pairwise(strides))
            if not strides or strides[0] <= 0 or not ascending:
                raise ValueError(f"strides must be positive and ascending, got {list(strides)}")
        if range_factor <= 0:
            raise ValueError(f"range_factor must be > 0, got {range_factor}")
        for name, value in (("center_epsilon", center_epsilon), ("inset", inset)):
            if value is None or value < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        self.strides = strides
        self.range_factor = range_factor
        self.center_epsilon = center_epsilon
        self.inset = inset

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:
        self.strides = bound_value(self, "strides", self.strides, tuple(strides))

    def match(self, scene: Scene) -> Tensor:
        anchors, boxes = scene.anchors, scene.boxes
        strides = self._strides()
        if len(anchors) != len(strides):
            raise ValueError(
                f"the matcher was built for {len(strides)} levels of strides {list(strides)}, but "
                f"there are {len(anchors)} levels of anchors"
            )
        box_idxs = torch.arange(len(boxes), device=boxes.device)
        keys = priority_keys(-box_areas(boxes), box_idxs)[:, None]  # (M, 1)
        matched = []
        for level, level_anchors in enumerate(anchors):
            centers = box_centers(level_anchors)  # (Ri, 2)
            conflicts = DenseConflicts(scene.num_images, len(centers), boxes.device)
            for rows in box_chunks(boxes, len(centers)):
                positive = self._is_positive(level, centers, boxes[rows])  # (m, Ri)
                conflicts.claim(keys[rows], scene.image_idxs[rows], positive)
            matched.append(conflicts.winners())  # (N, Ri)
        return torch.cat(matched, dim=1)

    def _is_positive(self, level: int, centers: Tensor, boxes: Tensor) -> Tensor:
        """Returns the mask (m, Ri) of the anchors of a level that boxes (m, 4) claim."""
        least, largest = (
            distance.sub_(self.inset)
            for distance in side_distance_bounds(centers, boxes[:, None])  # (m, Ri)
        )
        low, high = self._range(level)
        return (least > self.center_epsilon) & (largest >= low) & (largest <= high)

    def _range(self, level: int) -> tuple[float, float]:
        """Returns the range of the largest distance for positives of a level, in pixels."""
        strides = self._strides()
        low = self.range_factor * strides[level - 1] if level > 0 else -math.inf
        is_last = level == len(strides) - 1
        return low, math.inf if is_last else self.range_factor * strides[level]

    def _strides(self) -> tuple[int, ...]:
        return self.strides or _STRIDES_OF_FCOS
