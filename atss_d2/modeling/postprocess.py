"""From dense predictions to detections: select per level, decode, batched NMS.

Functions of plain tensors, used by eager inference and by everything that must agree with it.

Shapes: L levels, Ri anchors of level i, K classes, T selected candidates, D detections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .nms import batched_nms

NO_SCORE = -1.0
# Sigmoid is monotone: logits are compared with the logit of the score threshold, less this much
# for its rounding, and only what is left gets a score.
_LOGIT_SLACK = 1e-3


def postprocess(
    anchors: list[Tensor],
    logits: list[Tensor],
    deltas: list[Tensor],
    centerness: list[Tensor] | None,
    image_size: tuple[int, int],
    *,
    box2box_transform,
    score_thresh: float = 0.05,
    topk_candidates: int = 1000,
    nms_thresh: float = 0.6,
    max_detections: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of one image.

    A candidate is an (anchor, class) pair whose class score exceeds ``score_thresh``. The score
    of a detection is sqrt(class score x centerness), by which candidates are also ranked; without
    centerness it is the class score.

    Args:
        anchors: L levels, each (Ri, 4) XYXY, pixels.
        logits: L levels, each (Ri, K) class logits.
        deltas: L levels, each (Ri, 4), as the box coder wants them.
        centerness: L levels, each (Ri,) logits; None for a head that predicts none.
        image_size: (height, width) to which boxes are clipped.
        box2box_transform: Box coder with ``apply_deltas(deltas, anchors)``.
        score_thresh: Least class score, before centerness.
        topk_candidates: Most candidates of a level.
        nms_thresh: IoU above which the lower-scored box of the same class is removed.
        max_detections: Most detections of the image.

    Returns:
        boxes (D, 4) XYXY in pixels, scores (D,) and classes (D,) int64, best score first.
    """
    boxes, scores, classes = [], [], []
    for i, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas)):
        level_scores, anchor_idxs, level_classes = select_candidates(
            level_logits,
            None if centerness is None else centerness[i],
            score_thresh=score_thresh,
            topk_candidates=topk_candidates,
        )
        boxes.append(
            box2box_transform.apply_deltas(
                level_deltas[anchor_idxs].float(), level_anchors[anchor_idxs]
            )
        )
        scores.append(level_scores)
        classes.append(level_classes)
    # A single NaN would make NMS keep every box; as a box of no area it meets none.
    boxes = clip_boxes(torch.cat(boxes).nan_to_num(), image_size)  # (T, 4)
    scores, classes = torch.cat(scores), torch.cat(classes)  # (T,)
    # Clipping comes first: class offsets of batched_nms need coordinates that are not negative.
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    keep = keep[scores[keep] > NO_SCORE]  # places without a candidate come last
    return boxes[keep], scores[keep], classes[keep]


def select_candidates(
    logits: Tensor, centerness: Tensor | None, *, score_thresh: float, topk_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of one level.

    Args:
        logits: (Ri, K) class logits.
        centerness: (Ri,) centerness logits, or None.
        score_thresh: Least class score, before centerness.
        topk_candidates: Most candidates to return.

    Returns:
        scores (T,), anchor indices (T,) and classes (T,), best score first. On a GPU there are
        always ``topk_candidates`` if the level has so many, the last ones with :data:`NO_SCORE`.
    """
    select = _select_survivors if logits.device.type == "cpu" else _select_fixed_number
    return select(logits, centerness, score_thresh, topk_candidates)


def _select_survivors(
    logits: Tensor, centerness: Tensor | None, score_thresh: float, topk_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes scores only where they matter; on a GPU the host would wait for their number."""
    anchor_idxs, classes = (logits > _min_logit(score_thresh)).nonzero().unbind(dim=1)
    # Scores of half-precision logits would be rounded to three digits, and NMS refuses them.
    scores = logits[anchor_idxs, classes].float().sigmoid()
    is_above = scores > score_thresh
    scores, anchor_idxs, classes = scores[is_above], anchor_idxs[is_above], classes[is_above]
    if centerness is not None:
        scores = (scores * centerness[anchor_idxs].float().sigmoid()).sqrt()
    scores, order = scores.topk(_at_most(topk_candidates, scores.shape[0]))
    return scores, anchor_idxs[order], classes[order]


def _select_fixed_number(
    logits: Tensor, centerness: Tensor | None, score_thresh: float, topk_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a wait: the places of missing candidates have :data:`NO_SCORE`."""
    scores = class_scores = logits.float().sigmoid()  # (Ri, K)
    if centerness is not None:
        scores = (class_scores * centerness.float().sigmoid()[:, None]).sqrt()
    scores = torch.where(class_scores > score_thresh, scores, NO_SCORE).flatten()
    scores, idxs = scores.topk(min(topk_candidates, scores.shape[0]))
    num_classes = logits.shape[1]
    return scores, idxs.div(num_classes, rounding_mode="floor"), idxs % num_classes


def _min_logit(score_thresh: float) -> float:
    if score_thresh <= 0:
        return -math.inf
    return math.log(score_thresh / (1 - score_thresh)) - _LOGIT_SLACK if score_thresh < 1 else 20.0


def _at_most(limit: int, size: int | Tensor) -> int | Tensor:
    # While a model is traced a size is a tensor, and the trace must not keep its value.
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clips XYXY boxes (T, 4) to an image of ``image_size`` (height, width)."""
    height, width = image_size
    x = boxes[:, 0::2].clamp(min=0, max=width)
    y = boxes[:, 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=2).flatten(1)
