"""Task alignment: selection by predicted scores and boxes (TOOD, arXiv 2108.07755, Sec. 3.3).

Shapes: N images, R anchors of all levels, M boxes of the batch, m boxes of a chunk, C candidates of
one box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import box_centers, least_side_distance
from ..nouns import Assignment, Scene
from .base import MATCHER_REGISTRY, DenseMatcher
from .predicted import PredictedPairs, as_merits, as_values, best_anchors
from .selection import priority_keys, resolve_conflicts

_MARGIN = 1 + 1e-5  # for the rounding of the score, as in predicted.py
_EPSILON = 1e-7


@MATCHER_REGISTRY.register()
class TaskAlignedMatcher(DenseMatcher):
    """Selects the anchors whose predictions fit a box best, in class and in place.

    The alignment of an anchor with a box is t = p^alpha u^beta, where p is the predicted score of
    the class of the box, and u the IoU of the predicted box. Of the ``topk`` anchors of highest t,
    over all levels, those with t > 0 whose center lies inside the box are positive. An anchor that
    is positive for several boxes goes to the one of highest u. All other anchors are background.

    The soft targets are t' = t / (max t + 1e-7) x max u, with the maxima over the positives that
    the box keeps.

    Ties are broken the same way on every device: of equally aligned anchors, the lower index is
    taken; of boxes with equal u, the lower index gets the anchor. Predictions that are not finite
    align with nothing.

    During the first iterations of a training, another rule selects, and there are no soft targets.

    Its stats contain ``sum_soft``, the sum of the soft targets per image.
    """

    needs_predictions = True
    gives_soft_targets = True

    def __init__(
        self,
        *,
        topk: int = 13,
        alpha: float = 1.0,
        beta: float = 6.0,
        center_epsilon: float = 0.01,
        warm_up: DenseMatcher | None = None,
        warm_up_iterations: int = 0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: Candidates per box.
            alpha: Exponent of the score.
            beta: Exponent of the IoU.
            center_epsilon: A center is inside a box when its distances to all four sides are
                larger than this, in pixels.
            warm_up: Rule of the first iterations; ATSS in the paper.
            warm_up_iterations: How many these are; 29.3k of 90k in the paper. Outside training,
                nothing is a warm-up.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range, or there is no rule for the warm-up.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        for name, value, least in (
            ("topk", topk, 1),
            ("alpha", alpha, 0),
            ("center_epsilon", center_epsilon, 0),
            ("warm_up_iterations", warm_up_iterations, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if beta <= 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        if warm_up_iterations and warm_up is None:
            raise ValueError(
                f"warm_up_iterations is {warm_up_iterations}, but there is no rule for them: set "
                "warm_up to one, such as ATSSMatcher"
            )
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.center_epsilon = center_epsilon
        self.warm_up = warm_up
        self.warm_up_iterations = warm_up_iterations

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:
        if self.warm_up is not None:
            self.warm_up.bind(num_anchors, strides)

    def match(self, scene: Scene) -> Assignment | Tensor:
        if scene.iteration is not None and scene.iteration < self.warm_up_iterations:
            return self.warm_up.assign(scene)
        boxes, num_images = scene.boxes, scene.num_images
        anchors = torch.cat(scene.anchors)  # (R, 4)
        pairs = PredictedPairs(scene)
        candidates, alignments = self._candidates(scene, pairs)  # (M, C)
        box_idxs = torch.arange(len(boxes), device=boxes.device)[:, None]  # (M, 1)
        slots = pairs.slots(box_idxs, candidates)
        ious = pairs.ious(box_idxs, slots)
        margins = least_side_distance(box_centers(anchors)[candidates], boxes[:, None])
        positive = (alignments > 0) & (margins > self.center_epsilon)
        keys = priority_keys(ious, box_idxs)
        matched = resolve_conflicts(
            candidates, positive, keys, scene.image_idxs, num_images, len(anchors)
        )
        has_won = positive & (matched.view(-1)[slots] == box_idxs)
        alignments, ious = alignments * has_won, ious * has_won
        scales = ious.amax(dim=1) / (alignments.amax(dim=1) + _EPSILON)  # (M,)
        soft = torch.zeros(matched.numel(), device=boxes.device)
        # At most one of the values that are added at a place differs from 0.
        soft.index_add_(0, slots.flatten(), (alignments * scales[:, None]).flatten())
        stats = {"sum_soft": soft.sum() / max(num_images, 1)}
        return Assignment(matched, soft.view_as(matched), stats)

    def _candidates(self, scene: Scene, pairs: PredictedPairs) -> tuple[Tensor, Tensor]:
        """Returns the best anchors of each box and their alignments, (M, C) each."""

        def merits(box_idxs: Tensor, anchors: Tensor) -> Tensor:
            slots = pairs.slots(box_idxs, anchors)
            scores = pairs.logits(box_idxs, slots).sigmoid()
            return as_merits(scores**self.alpha * pairs.ious(box_idxs, slots) ** self.beta)

        def bounds(box_idxs: Tensor, blocks: Tensor) -> Tensor:
            scores = pairs.logit_bounds(box_idxs, blocks).sigmoid() * _MARGIN
            return as_merits(scores**self.alpha * pairs.iou_bounds(box_idxs, blocks) ** self.beta)

        candidates, found = best_anchors(
            scene,
            self.topk,
            merits=merits,
            bounds=bounds,
            blocks=pairs.overlapping_blocks,
        )
        return candidates, as_values(found)
