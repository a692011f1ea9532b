"""Non-maximum suppression per class.

Shapes: N images, T boxes, D detections.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import map as map_images
from torchvision.ops import nms

# With fewer boxes, one NMS for all classes, shifted apart, is fastest. With more, the boxes that
# stay are compared with too many boxes of other classes, while one NMS per class costs one call per
# class: classes are processed in groups of about _GROUP_SIZE boxes. A GPU compares all pairs, which
# takes one bit of memory per pair. `python -m benchmarks nms` compares these methods.
_CPU_MOST_AT_ONCE, _GPU_MOST_AT_ONCE = 1000, 25_000
_GROUP_SIZE = 400


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> Tensor:
    """Removes boxes that overlap a box of their class with a higher score.

    The result is that of a separate NMS for each class, for any number of classes: classes are
    shifted apart in float64, all at once or, with many boxes, some classes at a time. (Detectron2's
    ``batched_nms`` shifts in float32, where 1,203 classes on a photograph reach coordinates with
    steps of an eighth of a pixel.)

    Args:
        boxes: (T, 4) XYXY in float32, with nonnegative coordinates.
        scores: (T,) float32.
        classes: (T,) int64.
        iou_thresh: IoU above which the box of lower score is removed.

    Returns:
        (D,) int64 indices of the boxes that stay, best score first; of equal scores, the lower
        index first.
    """
    if not torch.jit.is_tracing() and len(boxes) == 0:
        return torch.zeros_like(classes)
    most_at_once = _CPU_MOST_AT_ONCE if boxes.device.type == "cpu" else _GPU_MOST_AT_ONCE
    if torch.jit.is_tracing() or len(boxes) <= most_at_once:
        return _nms(_shifted_apart(boxes, classes), scores, iou_thresh)
    order = classes.argsort(stable=True)  # (T,), keeps the order within a class
    classes_in_order = classes[order]
    shifted, scores_in_order = _shifted_apart(boxes[order], classes_in_order), scores[order]
    kept = [
        order[rows][_nms(shifted[rows], scores_in_order[rows], iou_thresh)]
        for rows in _class_groups(classes_in_order)
    ]
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]


def _shifted_apart(boxes: Tensor, cells: Tensor) -> Tensor:
    """Returns boxes (..., 4) in float64, shifted apart from those of other cells (...,) of a row.

    With 10^5 pixels and 10^4 cells, float32 coordinates keep steps of 10^-7 pixels.
    """
    boxes = boxes.to(_wide_dtype(boxes))
    # A trace must also run without any boxes, which have no maximum.
    corners = F.pad(boxes.flatten(), (0, 1)) if torch.jit.is_tracing() else boxes
    return boxes + (cells * (corners.max() + 1))[..., None]


def _wide_dtype(boxes: Tensor) -> torch.dtype:
    return torch.float32 if boxes.device.type == "mps" else torch.float64  # MPS has no float64


def _nms(shifted: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Runs torchvision's NMS on boxes in float64, with the decisions of one in float32."""
    return nms(shifted, scores.to(shifted.dtype), _wide_threshold(iou_thresh))


@functools.lru_cache
def _wide_threshold(iou_thresh: float) -> float:
    """Returns the bound above which numbers exceed a threshold once rounded to float32.

    An IoU of exactly 3/5 rounds to a float32 number above 0.6. Boxes on whole pixels have such
    IoUs.
    """
    below = np.float32(iou_thresh)
    if float(below) > iou_thresh:
        below = np.nextafter(below, np.float32(-np.inf))
    above = np.nextafter(below, np.float32(np.inf))
    return (float(below) + float(above)) / 2


def _class_groups(classes: Tensor) -> list[slice]:
    """Splits sorted classes (T,), T > 0, into slices of whole classes, about _GROUP_SIZE boxes."""
    is_first = torch.cat((classes.new_ones(1), classes.diff())) != 0  # of its class
    firsts = torch.cat((is_first.nonzero()[:, 0], classes.new_tensor([len(classes)])))
    wanted = torch.arange(0, len(classes) + _GROUP_SIZE, _GROUP_SIZE, device=classes.device)
    wanted = wanted.clamp(max=len(classes))
    cuts = firsts[torch.searchsorted(firsts, wanted)].unique().tolist()
    return [slice(start, end) for start, end in itertools.pairwise(cuts)]


def kept_by_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, is_box: Tensor, iou_thresh: float
) -> Tensor:
    """Runs NMS per class on each image of a batch, without a shape that depends on a value.

    Args:
        boxes: (N, T, 4) XYXY in float32, with nonnegative coordinates.
        scores: (N, T) float32.
        classes: (N, T) int64.
        is_box: (N, T) bool, False for empty places.
        iou_thresh: IoU above which the box of lower score is removed.

    Returns:
        (N, T) bool, which boxes stay.
    """
    # Empty places become one box in a cell of its own, which NMS handles quickly. Two extra boxes
    # always stay: exporters assume that NMS keeps two.
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes = torch.where(is_box[..., None], boxes, unit)
    cells = torch.where(is_box, classes, -1)
    boxes = torch.cat((boxes, unit.expand(boxes.shape[0], 2, 4)), dim=1)  # (N, T + 2, 4)
    cells = torch.cat((cells, classes.new_tensor([-3, -2]).expand(boxes.shape[0], 2)), dim=1)
    scores = torch.where(is_box, scores, -1.0)
    scores = torch.cat((scores, scores.new_tensor([-2.0, -2.0]).expand(boxes.shape[0], 2)), dim=1)
    shifted = _shifted_apart(boxes, cells)
    scores, threshold = scores.to(shifted.dtype), _wide_threshold(iou_thresh)
    if torch.jit.is_tracing():
        is_kept = _kept_in_images(shifted, scores, threshold)
    elif torch.compiler.is_compiling():
        is_kept = map_images(lambda image: _kept_in_image(*image, threshold), (shifted, scores))
    else:
        is_kept = torch.stack([_kept_in_image(*image, threshold) for image in zip(shifted, scores)])
    return is_kept[:, :-2] & is_box


def kept_by_joint_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, is_box: Tensor, iou_thresh: float
) -> Tensor:
    """Works like :func:`kept_by_nms`, with one NMS of all images: quadratic time in their number.

    It is for versions of torch whose ``torch.export`` cannot put an NMS into a loop over images.
    """
    num_images, num_places = classes.shape
    image_idxs = torch.arange(num_images, device=boxes.device)
    cells = image_idxs[:, None] * (classes.max() + 1) + classes + 3
    cells = torch.where(is_box, cells, 0).flatten()
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes = torch.where(is_box[..., None], boxes, unit).flatten(0, 1)
    # Two extra boxes always stay, as in kept_by_nms.
    boxes = torch.cat((boxes, unit.expand(2, 4)))  # (N x T + 2, 4)
    cells = torch.cat((cells, cells.new_tensor([1, 2])))
    scores = torch.where(is_box, scores, -1.0).flatten()
    scores = torch.cat((scores, scores.new_tensor([-2.0, -2.0])))
    shifted = _shifted_apart(boxes, cells)
    is_kept = _kept_in_image(shifted, scores.to(shifted.dtype), _wide_threshold(iou_thresh))
    return is_kept[:-2].view(num_images, num_places) & is_box


def _kept_in_image(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Returns which boxes (T,) of (T, 4) an NMS keeps."""
    keep = torch.ops.torchvision.nms(boxes, scores, iou_thresh)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, keep, 1)


@torch.jit.script_if_tracing
def _kept_in_images(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Returns which boxes (N, T) of (N, T, 4) stay; a trace keeps the loop over the images."""
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    for i in range(boxes.shape[0]):
        keep = torch.ops.torchvision.nms(boxes[i], scores[i], iou_thresh)
        is_kept[i, keep] = True
    return is_kept
