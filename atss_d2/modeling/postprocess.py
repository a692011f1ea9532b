"""From dense predictions to detections: select per level, decode, batched NMS.

Functions of plain tensors, used by eager inference and by everything that must agree with it. Eager
inference takes one image at a time and as many candidates as there are: :func:`postprocess`. Where
no shape may depend on a value, as in an exported model, a batch is done at once and places that are
not taken are marked: :func:`candidates_of_batch`, :func:`detections_of_batch`.

Shapes: N images, L levels, Ri anchors of level i, K classes, T selected candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidates import NO_SCORE, check_score_options, select_candidates, select_fixed_number
from .nms import batched_nms, kept_by_nms


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
    score_type: str = "sqrt",
    rank_by: str = "score",
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of one image.

    A candidate is an (anchor, class) pair whose class score exceeds ``score_thresh``. The score
    of a detection is sqrt(class score x centerness), by which candidates are also ranked, unless
    ``score_type`` and ``rank_by`` say otherwise; without centerness it is the class score.

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
        score_type: What the score of a detection is: "sqrt" of class score x centerness, or the
            plain "product".
        rank_by: By what the best candidates of a level are chosen: this "score", or the
            "class_score" alone.

    Returns:
        boxes (D, 4) XYXY in pixels, scores (D,) and classes (D,) int64, best score first.

    Raises:
        ValueError: There is no such ``score_type`` or ``rank_by``.
    """
    check_score_options(score_type, rank_by)
    boxes, scores, classes = [], [], []
    for i, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas)):
        level_scores, anchor_idxs, level_classes = select_candidates(
            level_logits,
            None if centerness is None else centerness[i],
            score_thresh=score_thresh,
            topk_candidates=topk_candidates,
            score_type=score_type,
            rank_by=rank_by,
        )
        boxes.append(
            box2box_transform.apply_deltas(
                level_deltas[anchor_idxs].float(), level_anchors[anchor_idxs]
            )
        )
        scores.append(level_scores)
        classes.append(level_classes)
    # Clipping comes first: class offsets of batched_nms need coordinates that are not negative.
    boxes, scores = _into_image(torch.cat(boxes), torch.cat(scores), image_size)  # (T, 4), (T,)
    classes = torch.cat(classes)  # (T,)
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    keep = keep[scores[keep] > NO_SCORE]  # places without a candidate come last
    return boxes[keep], scores[keep], classes[keep]


def candidates_of_batch(
    anchors: list[Tensor],
    logits: list[Tensor],
    deltas: list[Tensor],
    centerness: list[Tensor] | None,
    image_size: tuple[int, int],
    *,
    box2box_transform,
    score_thresh: float = 0.05,
    topk_candidates: int = 1000,
    score_type: str = "sqrt",
    rank_by: str = "score",
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of all images before NMS, the same number T = L x ``topk_candidates`` for each.

    Args:
        anchors: L levels, each (Ri, 4) XYXY, pixels.
        logits: L levels, each (N, Ri, K) class logits.
        deltas: L levels, each (N, Ri, 4), as the box coder wants them.
        centerness: L levels, each (N, Ri) logits; None for a head that predicts none.
        image_size: (height, width) of all images, to which boxes are clipped.
        box2box_transform: See :func:`postprocess`, as for the rest.

    Returns:
        boxes (N, T, 4), scores (N, T) and classes (N, T), level by level; the score is
        :data:`NO_SCORE` where there is no candidate.
    """
    check_score_options(score_type, rank_by)
    boxes, scores, classes = [], [], []
    for i, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas)):
        level_scores, anchor_idxs, level_classes = select_fixed_number(
            level_logits,
            None if centerness is None else centerness[i],
            score_thresh,
            topk_candidates,
            score_type,
            rank_by,
            fill=True,
        )
        decoded = box2box_transform.apply_deltas(
            _take_rows(level_deltas, anchor_idxs).float().flatten(0, 1),
            level_anchors[anchor_idxs.flatten()],
        )
        boxes.append(decoded.unflatten(0, (-1, topk_candidates)))
        scores.append(level_scores)
        classes.append(level_classes)
    boxes, scores = _into_image(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), image_size)
    return boxes, scores, torch.cat(classes, dim=1)


def detections_of_batch(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    nms_thresh: float = 0.6,
    max_detections: int = 100,
    kept_by_nms: Callable[..., Tensor] = kept_by_nms,
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS of each image, with the same number of places for each.

    Args:
        boxes: (N, T, 4), see :func:`candidates_of_batch`, as for the next two.
        scores: (N, T).
        classes: (N, T).
        nms_thresh: See :func:`postprocess`.
        max_detections: D.
        kept_by_nms: For a runtime with an NMS of its own, another function like
            :func:`.nms.kept_by_nms`.

    Returns:
        boxes (N, D, 4), scores (N, D) and classes (N, D), best score first; the score is
        :data:`NO_SCORE` where there is no detection.
    """
    is_kept = kept_by_nms(boxes, scores, classes, scores > NO_SCORE, nms_thresh)
    return best_of_batch(boxes, torch.where(is_kept, scores, NO_SCORE), classes, max_detections)


def best_of_batch(
    boxes: Tensor, scores: Tensor, classes: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best of each image, best first; boxes (N, T, 4) become (N, ``count``, 4)."""
    # There may be fewer places than that.
    scores, idxs = F.pad(scores, (0, count), value=NO_SCORE).topk(count)
    idxs = torch.where(scores > NO_SCORE, idxs, 0)
    return _take_rows(boxes, idxs), scores, classes.gather(1, idxs)


def _take_rows(x: Tensor, idxs: Tensor) -> Tensor:
    """Rows ``idxs`` (N, T) of the images in (N, R, C)."""
    return x.gather(1, idxs[..., None].expand(-1, -1, x.shape[2]))


def _into_image(
    boxes: Tensor, scores: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Clips decoded boxes (..., 4); those of which nothing is left are no candidates any more.

    They would take places among the best and vanish in Detectron2's ``detector_postprocess``.
    """
    # A single NaN would make NMS keep every box; it becomes a box without area.
    boxes = clip_boxes(boxes.nan_to_num(), image_size)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return boxes, torch.where(has_area, scores, NO_SCORE)


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clips XYXY boxes (..., 4) to an image of ``image_size`` (height, width)."""
    height, width = image_size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=-1).flatten(-2)
