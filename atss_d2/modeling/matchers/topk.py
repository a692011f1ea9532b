"""Selection of a fixed number of anchors by IoU: the rule TOPK of the authors' release.

Shapes: N images, R anchors of all levels, M boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import box_centers, has_area, least_side_distance, paired_iou
from ..nouns import Scene
from .base import MATCHER_REGISTRY, DenseMatcher
from .selection import box_chunks, ordered_bits, priority_keys, resolve_conflicts, stable_topk

# The largest distance of an image reduces the IoU by 1 over this.
_MAX_PENALTY_DIVISOR = 1000.0


@MATCHER_REGISTRY.register()
class TopKMatcher(DenseMatcher):
    """Selects those of a box's ``topk`` best anchors whose center lies inside it.

    The best anchors, over all levels, have the highest IoU - d / d_max / 1000, where d is the
    distance from the center of the anchor to that of the box, and d_max the largest such distance
    in the image, over all of its anchors and boxes. So the IoU decides, and the distance only among
    anchors with nearly the same IoU. An anchor whose center is outside the box takes a place among
    the best without being positive. An anchor that is positive for several boxes goes to the one
    with the highest IoU. All other anchors are background; none is ignored.

    This is the rule TOPK of the authors' release, which the paper does not mention; with
    ``inset=0.5`` and their anchors it gives their labels.

    Ties are broken the same way on every device: of equally good anchors, the lower index is taken;
    of boxes with equal IoU, the lower index gets the anchor.
    """

    def __init__(
        self,
        *,
        topk: int = 9,
        center_epsilon: float | None = 0.01,
        inset: float = 0.0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: Anchors per box.
            center_epsilon: A center is inside a box when its distances to all four sides are larger
                than this, in pixels. None: a positive must only overlap its box; its center may lie
                outside.
            inset: Pixels subtracted from each of these distances, see :class:`ATSSMatcher`.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        for name, value, least in (("topk", topk, 1), ("inset", inset, 0)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if center_epsilon is not None and center_epsilon < 0:
            raise ValueError(f"center_epsilon must be None or >= 0, got {center_epsilon}")
        self.topk = topk
        self.center_epsilon = center_epsilon
        self.inset = inset

    def match(self, scene: Scene) -> Tensor:
        all_anchors, boxes = torch.cat(scene.anchors), scene.boxes  # (R, 4), (M, 4)
        centers = box_centers(all_anchors)  # (R, 2)
        k = min(self.topk, len(all_anchors))
        largest = self._largest_distances(centers, scene)  # (M, 1)
        # A tensor: a GPU divides by a number by multiplying by its reciprocal, which rounds
        # differently.
        divisor = torch.full((1,), _MAX_PENALTY_DIVISOR, device=boxes.device)
        candidates, candidate_ious = [], []
        for rows in box_chunks(boxes, len(all_anchors)):
            ious = paired_iou(all_anchors, boxes[rows, None])  # (m, R)
            penalties = _distances(centers, boxes[rows]).div_(largest[rows]).div_(divisor)
            best = stable_topk(ordered_bits(ious - penalties), k, largest=True)  # (m, k)
            candidates.append(best)
            candidate_ious.append(ious.gather(1, best))
        candidates, ious = torch.cat(candidates), torch.cat(candidate_ious)  # (M, k)
        positive = ious > 0
        if self.center_epsilon is not None:
            margins = least_side_distance(centers[candidates], boxes[:, None])  # (M, k)
            positive &= margins - self.inset > self.center_epsilon
        keys = priority_keys(ious, torch.arange(len(boxes), device=boxes.device)[:, None])
        return resolve_conflicts(
            candidates, positive, keys, scene.image_idxs, scene.num_images, len(all_anchors)
        )

    @staticmethod
    def _largest_distances(centers: Tensor, scene: Scene) -> Tensor:
        """Returns d_max > 0 (M, 1) of the image of each box; boxes without area do not count."""
        boxes, image_idxs = scene.boxes, scene.image_idxs
        farthest = [
            _distances(centers, boxes[rows]).amax(dim=1)  # (m,)
            for rows in box_chunks(boxes, len(centers))
        ]
        farthest = torch.cat(farthest).masked_fill(~has_area(boxes), 0)  # (M,)
        largest = farthest.new_zeros(scene.num_images).scatter_reduce_(
            0, image_idxs, farthest, "amax"
        )
        return largest[image_idxs, None].clamp(min=torch.finfo(largest.dtype).tiny)


def _distances(centers: Tensor, boxes: Tensor) -> Tensor:
    """Returns the distances (m, R) from centers (R, 2) to those of boxes (m, 4), in pixels."""
    delta_x, delta_y = (centers - box_centers(boxes)[:, None]).unbind(dim=-1)
    return delta_x.square().add_(delta_y.square()).sqrt_()
