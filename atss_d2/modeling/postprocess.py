"""Turns dense predictions into detections: selection per level, decoding, NMS.

The functions take plain tensors of whole batches. Eager inference and exported files share
:func:`pre_nms_detections`, which does everything before NMS. NMS has two forms: image by image,
with a variable number of detections (:func:`postprocess`, eager inference), and without a shape
that depends on a value (:func:`detections_of_batch`, exported files).

Shapes: N images, L levels, R anchors, Ri of them on level i, K classes, D values that the box coder
takes for an anchor, T pre-NMS detections of an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .nms import batched_nms, kept_by_nms
from .nouns import Predictions
from .pre_nms import NO_SCORE, select_fixed_number, select_pre_nms
from .precision import no_autocast
from .score_voting import vote_by_scores


def postprocess(
    predictions: Predictions,
    anchors: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int] | Tensor],
    *,
    nms_thresh: float = 0.6,
    max_detections: int = 100,
    score_voting: float | None = None,
    **pre_nms_options,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the detections of each image of a batch.

    A pre-NMS detection is an (anchor, class) pair whose class score exceeds ``score_thresh``. The
    score of a detection is sqrt(class score x quality), which also ranks pre-NMS detections, unless
    ``score_type``, ``rank_by`` and ``thresh_on`` say otherwise; without a quality it is the class
    score.

    Args:
        predictions: Of the head, for N images.
        anchors: L x (Ri, 4) XYXY, pixels.
        image_sizes: N x (height, width), to which the boxes are clipped.
        nms_thresh: IoU above which the lower-scored box of the same class is removed.
        max_detections: Maximum number of detections per image.
        score_voting: ``sigma`` of :func:`.vote_by_scores`, which refines the boxes that NMS keeps;
            None: their boxes stay.
        pre_nms_options: See :func:`pre_nms_detections`.

    Returns:
        For each image, boxes (T, 4) XYXY in pixels, scores (T,) and classes (T,) int64 of its
        detections, best score first.
    """
    sizes = torch.stack([torch.as_tensor(size) for size in image_sizes])  # (N, 2)
    sizes = sizes.to(anchors[0].device, torch.float32, non_blocking=True)[..., None, None]
    batch = pre_nms_detections(predictions, anchors, sizes.unbind(dim=1), **pre_nms_options)
    detections = []
    for image in zip(*batch):
        # The host waits for a GPU to count the rows, as it will for NMS, which then has less to do.
        (rows,) = (image[1] > NO_SCORE).nonzero(as_tuple=True)
        boxes, scores, classes = (x[rows] for x in image)
        keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
        kept_boxes = boxes[keep]
        if score_voting is not None:
            kept_boxes = vote_by_scores(
                kept_boxes, classes[keep], boxes, scores, classes, sigma=score_voting
            )
        detections.append((kept_boxes, scores[keep], classes[keep]))
    return detections


def pre_nms_detections(
    predictions: Predictions,
    anchors: Sequence[Tensor],
    image_size: tuple[int | Tensor, int | Tensor],
    *,
    box2box_transform,
    score_thresh: float = 0.05,
    topk_candidates: int = 1000,
    score_type: str = "sqrt",
    rank_by: str = "score",
    thresh_on: str = "class_score",
    fixed_shapes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the pre-NMS detections of all images.

    Args:
        predictions: Of the head, for N images.
        anchors: L x (Ri, 4) XYXY, pixels.
        image_size: (height, width) of all images, or two tensors (N, 1, 1) with those of each.
        box2box_transform: Box coder with ``apply_deltas(deltas, anchors)``.
        score_thresh: Minimum class score, without the quality; or minimum score, see ``thresh_on``.
        topk_candidates: Maximum number of pre-NMS detections per level.
        score_type: Score of a detection: "sqrt", the square root of class score x quality, or the
            plain "product".
        rank_by: What ranks the pre-NMS detections of a level: this "score", or the "class_score"
            alone.
        thresh_on: What ``score_thresh`` applies to: the "class_score", or this "score".
        fixed_shapes: Whether no shape may depend on a value, as in an exported file: T is L x
            ``topk_candidates``. Otherwise it is smaller, see :func:`select_pre_nms`.

    Returns:
        boxes (N, T, 4), clipped, scores (N, T) and classes (N, T), level by level; the score is
        :data:`NO_SCORE` where there is no pre-NMS detection.
    """
    select = select_pre_nms
    if fixed_shapes:
        select = functools.partial(select_fixed_number, fill=True)
    logits, regression = predictions.logits, predictions.regression
    quality = predictions.quality
    levels = []
    for i, level_anchors in enumerate(anchors):
        scores, anchor_idxs, classes = select(
            logits[i],
            None if quality is None else quality[i],
            score_thresh,
            topk_candidates,
            score_type,
            rank_by,
            thresh_on,
        )
        deltas = _take_rows(regression[i], anchor_idxs).float()
        levels.append((scores, classes, deltas, level_anchors[anchor_idxs]))
    scores, classes, deltas, anchors = (torch.cat(x, dim=1) for x in zip(*levels))
    with no_autocast(deltas.device.type):
        boxes = box2box_transform.apply_deltas(deltas.flatten(0, 1), anchors.flatten(0, 1))
    boxes, scores = _into_image(boxes.reshape_as(anchors), scores, image_size)
    return boxes, scores, classes


def detections_of_batch(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    nms_thresh: float = 0.6,
    max_detections: int = 100,
    score_voting: float | None = None,
    kept_by_nms: Callable[..., Tensor] = kept_by_nms,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs NMS on each image without a shape that depends on a value, for exported files.

    It keeps the detections that :func:`postprocess` returns.

    Args:
        boxes: (N, T, 4), see :func:`pre_nms_detections`, as for the next two.
        scores: (N, T).
        classes: (N, T).
        nms_thresh: See :func:`postprocess`.
        max_detections: Number of places per image, T' below.
        score_voting: See :func:`postprocess`.
        kept_by_nms: Another function like :func:`.nms.kept_by_nms`, for a runtime with its own NMS.

    Returns:
        boxes (N, T', 4), scores (N, T') and classes (N, T'), best score first; the score is
        :data:`NO_SCORE` where there is no detection.
    """
    is_kept = kept_by_nms(boxes, scores, classes, scores > NO_SCORE, nms_thresh)
    kept_scores = torch.where(is_kept, scores, NO_SCORE)
    best_boxes, kept_scores, kept_classes = best_of_batch(
        boxes, kept_scores, classes, max_detections
    )
    if score_voting is not None:
        best_boxes = vote_by_scores(
            best_boxes, kept_classes, boxes, scores, classes, sigma=score_voting
        )
    return best_boxes, kept_scores, kept_classes


def best_of_batch(
    boxes: Tensor, scores: Tensor, classes: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the ``count`` best of each image, best first; boxes become (N, ``count``, 4)."""
    # There may be fewer places than that.
    scores, idxs = F.pad(scores, (0, count), value=NO_SCORE).topk(count)
    idxs = torch.where(scores > NO_SCORE, idxs, 0)
    return _take_rows(boxes, idxs), scores, classes.gather(1, idxs)


def _take_rows(x: Tensor, idxs: Tensor) -> Tensor:
    """Returns the rows ``idxs`` (N, T) of each image in (N, R, C)."""
    return x.gather(1, idxs[..., None].expand(-1, -1, x.shape[2]))


def _into_image(
    boxes: Tensor, scores: Tensor, image_size: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor]:
    """Clips decoded boxes (..., 4); those that become empty get :data:`NO_SCORE`.

    Otherwise they would take places among the best and vanish in Detectron2's
    ``detector_postprocess``.
    """
    # A single NaN would make NMS keep every box; it becomes a box without area. NMS also needs
    # nonnegative coordinates.
    boxes = clip_boxes(boxes.nan_to_num(), image_size)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return boxes, torch.where(has_area, scores, NO_SCORE)


def clip_boxes(boxes: Tensor, image_size: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Clips XYXY boxes (..., 4) to (height, width): numbers, or tensors with as many dimensions."""
    height, width = image_size
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height)
    return torch.stack((x, y), dim=-1).flatten(-2)
