"""ATSS by predictions instead of anchors, once for classes and once for boxes: the rule of DDOD.

Shapes: N images, R anchors of all levels, M boxes of the batch, C candidates of one box, K classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..geometry import paired_iou
from ..nouns import Assignment, Scene
from .atss import ATSSMatcher
from .base import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class DDODMatcher(ATSSMatcher):
    """Selects the candidates near the center of a box whose predictions stand out.

    "Disentangle Your Dense Object Detector" (arXiv 2107.02963). Candidates, threshold and conflicts
    are those of :class:`ATSSMatcher`, but the quality of a candidate is p^(1 - a) u^a instead of
    the IoU of the anchor: p is its score for the class of the box, u the IoU of its predicted box.
    The rule is applied twice, with the a of the classification and with that of boxes and their
    quality, to the same candidates. A candidate of quality 0 is only positive if ``min_positives``
    asks for it, so a box may receive no positives.

    Its stats are those of :class:`ATSSMatcher`, of the classification, and ``num_box_positives``
    per image.
    """

    needs_predictions = True
    selects_boxes_separately = True

    def __init__(self, *, cls_alpha: float = 0.8, box_alpha: float = 0.5, **kwargs: Any) -> None:
        """
        Args:
            cls_alpha: a of the samples of the classification, 0 (score alone) to 1 (IoU alone).
            box_alpha: a of the samples of boxes and their quality.
            kwargs: See :class:`ATSSMatcher`; ``metric`` is "iou".

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**kwargs)
        for name, value in (("cls_alpha", cls_alpha), ("box_alpha", box_alpha)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.metric != "iou":
            raise ValueError(
                f'metric="{self.metric}" has no power if it is negative: leave out metric'
            )
        self.cls_alpha = cls_alpha
        self.box_alpha = box_alpha

    def match(self, scene: Scene) -> Assignment:
        candidates, candidate_boxes = self._find_candidates(scene)  # (M, C), (M, C, 4)
        is_inside = self._is_inside(candidate_boxes, scene.boxes[:, None])  # (M, C)
        scores, ious = _scores_and_ious(scene, candidates)
        selected = []
        for alpha in (self.cls_alpha, self.box_alpha):
            quality = scores.pow(1 - alpha) * ious.pow(alpha)  # (M, C)
            selected.append(self._select(scene, candidates, quality, is_inside & (quality > 0)))
        (matched, stats), (box_matched, _) = selected
        num_box_positives = (box_matched >= 0).sum() / max(scene.num_images, 1)
        stats = {**stats, "num_box_positives": num_box_positives}
        return Assignment(matched, stats=stats, box_matched_idxs=box_matched)


def _scores_and_ious(scene: Scene, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what is predicted at candidates (M, C), 0 instead of NaN.

    Returns:
        Score (M, C) of the class of the box, and IoU (M, C) of the predicted box with the box.
    """
    image_idxs = scene.image_idxs[:, None]  # (M, 1)
    logits, boxes = scene.predictions.logits, scene.predictions.boxes  # (N, R, K), (N, R, 4)
    scores = logits[image_idxs, candidates, scene.classes[:, None]].sigmoid()  # (M, C)
    ious = paired_iou(boxes[image_idxs, candidates], scene.boxes[:, None])  # (M, C)
    # A NaN would make the threshold of its box NaN, and the key of a conflict meaningless.
    return scores.nan_to_num(0.0), ious.nan_to_num(0.0).clamp(0, 1)
