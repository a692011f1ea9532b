"""Selection by fixed IoU thresholds: RetinaNet's rule (arXiv 1708.02002, Sec. 4.1).

Shapes: N images, R anchors of all levels, M boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

import torch

from ..geometry import box_centers, has_area, least_side_distance, paired_iou
from ..nouns import Assignment, Scene
from .base import MATCHER_REGISTRY, DenseMatcher
from .selection import (
    BACKGROUND,
    IGNORED,
    DenseConflicts,
    box_chunks,
    max_per_image_,
    positive_priority_keys,
)

_LEAST_IOU = 2.0**-149  # smallest float32 above 0: a box that overlaps no anchor has no best one


@MATCHER_REGISTRY.register()
class IoUMatcher(DenseMatcher):
    """Selects the anchors whose highest IoU with a box reaches a threshold.

    An anchor belongs to the box with which its IoU is highest. It is positive if that IoU is at
    least the upper threshold, background if it is below the lower one, and ignored in between. With
    ``allow_low_quality_matches``, the best anchors of every box are also positive, for the box of
    *their* highest IoU, which may be another one. This equals Detectron2's
    ``Matcher(thresholds, [0, -1, 1], allow_low_quality_matches)``, except that a box that overlaps
    no anchor makes none positive (in Detectron2, it makes all anchors positive that it does not
    overlap).

    Ties are broken the same way on every device: of boxes with equal IoU, the lower index gets the
    anchor; all anchors that share the highest IoU of a box are its best anchors.

    Its stats contain ``num_ignored``, ignored anchors per image.
    """

    def __init__(
        self,
        *,
        thresholds: tuple[float, float] = (0.4, 0.5),
        allow_low_quality_matches: bool = True,
        low_quality_override: bool = False,
        center_in_gt: bool = False,
        center_epsilon: float = 0.01,
        inset: float = 0.0,
        ignore_ioa_thresh: float | None = None,
    ) -> None:
        """
        Args:
            thresholds: IoU below which an anchor is background, and IoU from which it is positive.
            allow_low_quality_matches: Whether the best anchors of a box are positive regardless of
                their IoU.
            low_quality_override: Whether a best anchor of a box belongs to that box even if its IoU
                with another is higher, as in mmdetection. A best anchor of several boxes belongs to
                the last of them.
            center_in_gt: Whether positives whose center is not inside their box become ignored
                (the step "in-GT" of the paper's Table 1).
            center_epsilon: With ``center_in_gt``: a center is inside a box when its distances to
                all four sides are larger than this, in pixels.
            inset: With ``center_in_gt``: pixels subtracted from each of these distances, see
                :class:`ATSSMatcher`.
            ignore_ioa_thresh: See :class:`DenseMatcher`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        if len(thresholds) != 2:
            raise ValueError(f"thresholds must be (low, high), got {tuple(thresholds)}")
        low, high = thresholds
        if not 0 < low <= high <= 1:
            raise ValueError(f"thresholds must be 0 < low <= high <= 1, got ({low}, {high})")
        for name, value in (("center_epsilon", center_epsilon), ("inset", inset)):
            if value is None or value < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        self.thresholds = (low, high)
        self.allow_low_quality_matches = allow_low_quality_matches
        self.low_quality_override = low_quality_override
        self.center_in_gt = center_in_gt
        self.center_epsilon = center_epsilon
        self.inset = inset

    def match(self, scene: Scene) -> Assignment:
        all_anchors = torch.cat(scene.anchors)  # (R, 4)
        image_idxs, num_images = scene.image_idxs, scene.num_images
        boxes = scene.boxes.masked_fill(~has_area(scene.boxes)[:, None], 0)  # overlaps nothing
        conflicts = DenseConflicts(num_images, len(all_anchors), boxes.device)
        # 1 + index of the last box whose best anchor this is; 0 for none.
        last_box = boxes.new_zeros(num_images, len(all_anchors), dtype=torch.int32)
        box_idxs = torch.arange(len(boxes), device=boxes.device)[:, None]  # (M, 1)
        for rows in box_chunks(boxes, len(all_anchors)):
            ious = paired_iou(all_anchors, boxes[rows, None])  # (m, R)
            conflicts.claim(positive_priority_keys(ious, box_idxs[rows]), image_idxs[rows])
            if self.allow_low_quality_matches:
                highest = ious.amax(dim=1, keepdim=True).clamp(min=_LEAST_IOU)
                is_best = (ious == highest).int() * (box_idxs[rows] + 1).int()
                max_per_image_(last_box, is_best, image_idxs[rows])

        matched = conflicts.winners()  # (N, R)
        if self.low_quality_override:
            matched = torch.where(last_box > 0, last_box.long() - 1, matched)
        # Row 0 stands for "no box", so that a batch without boxes needs no branch.
        matched_boxes = torch.cat((boxes.new_zeros(1, 4), boxes))[matched.clamp(min=-1) + 1]
        ious = paired_iou(all_anchors, matched_boxes)  # (N, R)
        low, high = self.thresholds
        positive = (ious >= high) | (last_box > 0)
        ignored = ~positive & (ious >= low)
        if self.center_in_gt:
            margins = least_side_distance(box_centers(all_anchors), matched_boxes)
            inside = margins - self.inset > self.center_epsilon
            ignored |= positive & ~inside
            positive &= inside
        stats = {"num_ignored": ignored.sum() / max(num_images, 1)}
        matched = torch.where(positive, matched, torch.where(ignored, IGNORED, BACKGROUND))
        return Assignment(matched, stats=stats)
