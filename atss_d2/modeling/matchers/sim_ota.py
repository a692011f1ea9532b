"""SimOTA: the cheapest anchors near the center of a box (YOLOX, arXiv 2107.08430, Sec. 2.1).

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
from .dynamic_k import DynamicKMatcher, PairCosts, is_inside
from .predicted import sum_over_classes


@MATCHER_REGISTRY.register()
class SimOTAMatcher(DynamicKMatcher):
    """Selects the k cheapest anchors of a box, those near its center first.

    How k follows from the predictions, and what happens to an anchor that several boxes want, says
    :class:`DynamicKMatcher`.

    The cost of an anchor is BCE(p, y) + ``iou_weight`` x -ln(u + 1e-8), where p are the predicted
    scores of all classes, y is 1 for the class of the box and 0 for the others, and u is the IoU of
    the predicted box. The sum of BCE is computed from the logits, which does not saturate.

    Near the center means inside the square of ``center_radius`` strides to each side of it. Anchors
    near the center of any box are candidates of all boxes of the image; but those far from the
    center of a box are only taken when there are too few others. That is the order which the 1e6
    that they cost in the published code means.

    Targets are hard. mmdetection uses ``center_radius=2.5, inside_box=True``, with 1e5 for 1e6.
    """

    def __init__(
        self,
        *,
        topk: int = 10,
        center_radius: float = 1.5,
        inside_box: bool = False,
        iou_weight: float = 3.0,
        strides: Sequence[int] | None = None,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: Number of the highest IoUs whose sum is k, and maximum of k.
            center_radius: Half the side of the square around the center of a box, in strides.
            inside_box: Whether an anchor near the center must also lie inside the box to come
                first. Then anchors inside any box are candidates, too.
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
        if center_radius <= 0:
            raise ValueError(f"center_radius must be > 0, got {center_radius}")
        self.center_radius = center_radius
        self.inside_box = inside_box

    def costs(self, scene: Scene, strides: Sequence[int]) -> PairCosts:
        return _Costs(scene, strides, self)


class _Costs(PairCosts):
    iou_epsilon = 1e-8

    def __init__(self, scene: Scene, strides: Sequence[int], matcher: SimOTAMatcher) -> None:
        self.radius = matcher.center_radius
        self.inside_box = matcher.inside_box
        super().__init__(scene, strides, matcher.iou_weight)
        # BCE is softplus(x) for a target of 0, softplus(x) - x for one of 1.
        self._negative_costs = sum_over_classes(scene.predictions.logits, F.softplus)

    def regions(self, rows: slice, level: int) -> Tensor:
        boxes = self.scene.boxes[rows]
        squares = _square(boxes, self.radius * self.level_strides[level])
        return torch.stack((squares, boxes) if self.inside_box else (squares,))

    def other_costs(self, box_idxs: Tensor, slots: Tensor, ious: Tensor) -> Tensor:
        # float64: the logit of a confident class is most of the sum that it is subtracted from.
        costs = self._negative_costs.view(-1)[slots] - self.logits(box_idxs, slots).double()
        return costs.float()

    def least_other_costs(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        return F.softplus(-self.logit_bounds(box_idxs, blocks))

    def is_preferred(self, box_idxs: Tensor, slots: Tensor) -> Tensor:
        anchors = slots % self.num_anchors
        centers, boxes = self.centers[anchors], self.scene.boxes[box_idxs]
        reach = self.radius * self.strides[anchors]
        is_near = is_inside(centers, _square(boxes, reach[..., None]))
        return is_near & is_inside(centers, boxes) if self.inside_box else is_near


def _square(boxes: Tensor, reach: float | Tensor) -> Tensor:
    """Returns the squares (..., 4) that reach so far from the centers of boxes (..., 4)."""
    centers = box_centers(boxes)
    return torch.cat((centers - reach, centers + reach), dim=-1)
