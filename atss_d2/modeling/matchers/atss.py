"""Adaptive Training Sample Selection (Algorithm 1 of arXiv 1912.02424).

Shapes: N images, L levels, A anchors per location, Ri anchors of level i, R = sum(Ri), M boxes of
the batch, C = sum_i min(k A, Ri) candidates of one box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..choices import check_choice
from ..geometry import (
    box_centers,
    has_area,
    least_side_distance,
    paired_diou,
    paired_giou,
    paired_intersection,
    paired_iou,
)
from ..nouns import Assignment, Scene
from .base import MATCHER_REGISTRY, DenseMatcher, bound_value
from .grid import anchor_grid
from .selection import nearest_anchors_per_level, priority_keys, resolve_conflicts

_METRICS = {"iou": paired_iou, "giou": paired_giou, "diou": paired_diou}


@MATCHER_REGISTRY.register()
class ATSSMatcher(DenseMatcher):
    """Selects the candidates near the center of a box whose IoU stands out.

    On each level, the ``topk * num_anchors`` anchors whose centers are nearest to the center of the
    box are candidates. The threshold is the mean + standard deviation (unbiased) of the IoUs of the
    candidates of all levels. A candidate is positive if its IoU >= threshold and its center lies
    inside the box. An anchor that is positive for several boxes goes to the one with the highest
    IoU. All other anchors are background; none is ignored.

    Ties are broken the same way on every device: of anchors at equal distance, the lower index is
    the candidate; of boxes with equal IoU, the lower index gets the anchor.

    Its stats contain ``mean_threshold``, the mean over the boxes with an area (0 without boxes).
    """

    def __init__(
        self,
        *,
        topk: int = 9,
        num_anchors: int | None = None,
        metric: str = "iou",
        std_factor: float = 1.0,
        unbiased_std: bool = True,
        center_epsilon: float | None = 0.01,
        inset: float = 0.0,
        min_positives: int = 0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            topk: k, candidates per level for each anchor of a location (Sec. 3.2; 9 in the paper).
            num_anchors: A, anchors per location. None: the model's, or 1 outside a model.
            metric: What is used as the IoU everywhere: "iou", "giou" or "diou".
            std_factor: The threshold is mean + ``std_factor`` * deviation; 1 in the paper.
            unbiased_std: Whether the variance is the sum of squares over C - 1 (the published
                code) or over C. The deviation of a single candidate is 0.
            center_epsilon: A center is inside a box when its distances to all four sides are larger
                than this, in pixels. None: a positive must only overlap its box; its center may lie
                outside.
            inset: Pixels subtracted from each of these distances. 0 is continuous geometry; 0.5
                reproduces the labels of the authors' inclusive-corner geometry.
            min_positives: 0 is the paper's rule, under which some boxes get no positive (tiny boxes
                between anchor centers, and boxes whose threshold lies above their best IoU). n >= 1
                also makes the n best candidates of every box with an area positive (by the metric,
                then by distance within a level), wherever their centers lie. A box still loses them
                to boxes that overlap them more.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        for name, value, least in (
            ("topk", topk, 1),
            ("num_anchors", 1 if num_anchors is None else num_anchors, 1),
            ("inset", inset, 0),
            ("min_positives", min_positives, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if center_epsilon is not None and center_epsilon < 0:
            raise ValueError(f"center_epsilon must be None or >= 0, got {center_epsilon}")
        check_choice("metric", metric, _METRICS)
        self.topk = topk
        self.num_anchors = num_anchors
        self.metric = metric
        self.std_factor = std_factor
        self.unbiased_std = unbiased_std
        self.center_epsilon = center_epsilon
        self.inset = inset
        self.min_positives = min_positives

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:
        self.num_anchors = bound_value(self, "num_anchors", self.num_anchors, num_anchors)

    def match(self, scene: Scene) -> Assignment:
        candidates, candidate_boxes = self._find_candidates(scene)  # (M, C), (M, C, 4)
        overlaps = _METRICS[self.metric](candidate_boxes, scene.boxes[:, None])  # (M, C)
        is_inside = self._is_inside(candidate_boxes, scene.boxes[:, None])  # (M, C)
        matched, stats = self._select(scene, candidates, overlaps, is_inside)
        return Assignment(matched, stats=stats)

    def _find_candidates(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Returns candidates (M, C), indices into the R anchors, and their boxes (M, C, 4)."""
        all_anchors = torch.cat(scene.anchors)  # (R, 4)
        candidates = self._candidates(scene, all_anchors)  # (M, C)
        # (M, C, 4); index_select takes half the time of indexing.
        candidate_boxes = all_anchors.index_select(0, candidates.flatten())
        return candidates, candidate_boxes.view(*candidates.shape, 4)

    def _select(
        self, scene: Scene, candidates: Tensor, overlaps: Tensor, is_inside: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Selects candidates (M, C) by overlaps (M, C); returns matched boxes (N, R) and stats."""
        thresholds = self._thresholds(overlaps)  # (M,)
        positive = overlaps >= thresholds[:, None]  # (M, C)
        positive &= is_inside
        if self.min_positives:
            positive |= self._best_candidates(overlaps)
        is_real = has_area(scene.boxes)  # (M,)
        positive &= is_real[:, None]

        # A "mean" over no boxes would be NaN; a sum divided by at least 1 is 0.
        sum_thresholds = thresholds.masked_fill(~is_real, 0).sum()
        stats = {"mean_threshold": sum_thresholds / is_real.sum().clamp(min=1)}
        box_idxs = torch.arange(len(positive), device=positive.device)[:, None]
        keys = priority_keys(overlaps, box_idxs)
        num_anchors = sum(len(level) for level in scene.anchors)
        matched = resolve_conflicts(
            candidates, positive, keys, scene.image_idxs, scene.num_images, num_anchors
        )
        return matched, stats

    def _candidates(self, scene: Scene, all_anchors: Tensor) -> Tensor:
        """Returns candidates (M, C), indices into the R anchors (Algorithm 1, lines 3 to 6)."""
        num_anchors = self.num_anchors or 1
        grid = anchor_grid(scene.anchors, scene.grid_sizes, topk=self.topk, num_anchors=num_anchors)
        if grid is None:  # not a grid: compares all distances
            return nearest_anchors_per_level(scene.anchors, scene.boxes, self.topk * num_anchors)
        return grid.nearest_anchors(all_anchors, scene.boxes)

    def _thresholds(self, overlaps: Tensor) -> Tensor:
        """Returns the mean + deviation (M,) of each row (Algorithm 1, lines 7 to 10).

        In float64, where the mean of equal IoUs is that IoU: otherwise, rounding would decide
        whether a box that contains all of its candidates gets all or none of them.
        """
        overlaps = overlaps.double()
        mean = overlaps.mean(dim=1, keepdim=True)  # (M, 1)
        degrees = max(overlaps.shape[1] - self.unbiased_std, 1)
        variance = (overlaps - mean).square().sum(dim=1) / degrees
        return mean[:, 0] + self.std_factor * variance.sqrt()

    def _is_inside(self, candidate_boxes: Tensor, boxes: Tensor) -> Tensor:
        """Returns the mask (M, C) of the candidates whose position allows them to be positive."""
        if self.center_epsilon is None:
            return paired_intersection(candidate_boxes, boxes) > 0
        margins = least_side_distance(box_centers(candidate_boxes), boxes)
        return margins - self.inset > self.center_epsilon

    def _best_candidates(self, overlaps: Tensor) -> Tensor:
        """Returns the mask (M, C) of the ``min_positives`` candidates of highest overlap."""
        count = min(self.min_positives, overlaps.shape[1])
        # A stable sort keeps the nearer candidate first among equal overlaps.
        best = overlaps.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return torch.zeros_like(overlaps, dtype=torch.bool).scatter(1, best, True)
