"""Dynamic soft label assignment of RTMDet (arXiv 2212.07784, Sec. 3.3).

Shapes: m boxes of a chunk, P pairs of a box and a block of anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import box_centers
from ..nouns import Scene
from .base import MATCHER_REGISTRY
from .dynamic_k import DynamicKMatcher, PairCosts
from .predicted import block_max, sum_over_classes


@MATCHER_REGISTRY.register()
class DynamicSoftLabelMatcher(DynamicKMatcher):
    """Selects the k cheapest anchors of a box, by soft labels (:class:`DynamicKMatcher`).

    The cost of an anchor is BCE(p, y) |y - p|^2, summed over the classes, + ``iou_weight`` x
    -ln(u + 1e-7) + 10^(d - ``center_radius``). Here p are the predicted scores of all classes, u is
    the IoU of the predicted box, y is u for the class of the box and 0 for the others, and d is the
    distance from the center of the anchor to that of the box, in strides.

    Anchors inside any box are candidates of all boxes of the image.

    The assignment has no soft targets: they would be u, which criteria with a quality focal loss
    compute anyway.
    """

    def __init__(
        self,
        *,
        topk: int = 13,
        center_radius: float = 3.0,
        iou_weight: float = 3.0,
        strides: Sequence[int] | None = None,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: Number of the highest IoUs whose sum is k, and maximum of k.
            center_radius: Distance from the center of a box, in strides, at which the cost is 1.
            iou_weight: Weight of the logarithm of the IoU.
            strides: Strides of the L levels in pixels. None: those of the model.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(
            topk=topk,
            iou_weight=iou_weight,
            strides=strides,
            ignore_ioa_thresh=ignore_ioa_thresh,
        )
        if center_radius < 0:
            raise ValueError(f"center_radius must be >= 0, got {center_radius}")
        self.center_radius = center_radius

    def costs(self, scene: Scene, strides: Sequence[int]) -> PairCosts:
        return _Costs(scene, strides, self)


class _Costs(PairCosts):
    iou_epsilon = 1e-7

    def __init__(
        self, scene: Scene, strides: Sequence[int], matcher: DynamicSoftLabelMatcher
    ) -> None:
        super().__init__(scene, strides, matcher.iou_weight)
        self.radius = matcher.center_radius
        self._negative_costs = sum_over_classes(scene.predictions.logits, _negative_cost)
        columns = self.centers.t()
        self._least_centers, self._most_centers = -block_max(-columns, 1), block_max(columns, 1)
        self._most_strides = block_max(self.strides, 0)

    def regions(self, rows: slice, level: int) -> Tensor:
        return self.scene.boxes[None, rows]

    def other_costs(self, box_idxs: Tensor, slots: Tensor, ious: Tensor) -> Tensor:
        logits, anchors = self.logits(box_idxs, slots), slots % self.num_anchors
        # float64: the term of a confident class is most of the sum that it is subtracted from.
        costs = self._negative_costs.view(-1)[slots] - _negative_cost(logits).double()
        costs += (F.softplus(logits) - logits * ious) * (ious - logits.sigmoid()).square()
        delta = self.centers[anchors] - box_centers(self.scene.boxes[box_idxs])
        distances = delta.square().sum(dim=-1).sqrt() / self.strides[anchors]
        return costs.float() + torch.pow(10, distances - self.radius)

    def least_other_costs(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        x, y = box_centers(self.scene.boxes[box_idxs]).unbind(dim=1)
        deltas = [
            torch.maximum(least[blocks] - point, point - most[blocks]).clamp(min=0)
            for point, least, most in zip((x, y), self._least_centers, self._most_centers)
        ]
        distances = (deltas[0].square() + deltas[1].square()).sqrt() / self._most_strides[blocks]
        return torch.pow(10, distances - self.radius)


def _negative_cost(logits: Tensor) -> Tensor:
    """Returns BCE(p, 0) p^2 (...) of p = sigmoid(logits)."""
    return F.softplus(logits) * logits.sigmoid().square()
