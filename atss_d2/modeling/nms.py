"""Non-maximum suppression per class.

Shapes: N images, K classes, T candidates, D detections.
"""

from __future__ import annotations

import itertools

import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from torch import Tensor
from torchvision.ops import nms

# With fewer candidates one NMS for all classes, shifted apart, is fastest on a CPU too. With more,
# those that stay are compared with too many boxes of other classes, while an NMS for each class
# costs a call for each: classes are taken in groups of about so many candidates.
# `python -m benchmarks nms` compares the ways.
_CPU_GROUPS_FROM = 1000
_GROUP_SIZE = 400


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> Tensor:
    """Removes boxes that overlap a box of their class with a higher score.

    The same as Detectron2's ``batched_nms``, whatever way is taken: classes are shifted apart, all
    at once or, on a CPU with many boxes, some classes at a time.

    Args:
        boxes: (T, 4) XYXY in float32, no coordinate negative.
        scores: (T,) float32.
        classes: (T,) int64.
        iou_thresh: IoU above which the box of lower score is removed.

    Returns:
        (D,) int64 indices of the boxes that stay, best score first, of equal scores the lower
        index.
    """
    if boxes.device.type != "cpu" or len(boxes) < _CPU_GROUPS_FROM or torch.jit.is_tracing():
        return detectron2_batched_nms(boxes, scores, classes, iou_thresh)
    order = classes.argsort(stable=True)  # (T,), within a class as before
    boxes_in_order, scores_in_order, classes_in_order = boxes[order], scores[order], classes[order]
    extent = boxes.amax() + 1
    kept = []
    for rows in _class_groups(classes_in_order):
        group_classes = classes_in_order[rows] - classes_in_order[rows.start]
        shifted = boxes_in_order[rows] + (group_classes * extent)[:, None]
        kept.append(order[rows][nms(shifted, scores_in_order[rows], iou_thresh)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]


def _class_groups(classes: Tensor) -> list[slice]:
    """Slices of sorted classes (T,), T > 0: whole classes, a slice for _GROUP_SIZE candidates."""
    is_first = torch.cat((classes.new_ones(1), classes.diff())) != 0  # of its class
    firsts = torch.cat((is_first.nonzero()[:, 0], classes.new_tensor([len(classes)])))
    wanted = torch.arange(0, len(classes) + _GROUP_SIZE, _GROUP_SIZE).clamp(max=len(classes))
    cuts = firsts[torch.searchsorted(firsts, wanted)].unique().tolist()
    return [slice(start, end) for start, end in itertools.pairwise(cuts)]


def kept_by_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    is_candidate: Tensor,
    num_classes: int,
    iou_thresh: float,
) -> Tensor:
    """The same for a batch in one call of NMS, without a shape that depends on a value.

    Boxes of different images and classes are shifted apart, each pair of them into a cell of its
    own of a square lattice. In a row, as :func:`batched_nms` shifts them, 80 classes of some images
    would reach coordinates where float32 has steps of some hundredths of a pixel.

    Args:
        boxes: (N, T, 4) XYXY in float32, no coordinate negative.
        scores: (N, T) float32.
        classes: (N, T) int64.
        is_candidate: (N, T) bool, False for places to be left out.
        num_classes: K.
        iou_thresh: IoU above which the box of lower score is removed.

    Returns:
        (N, T) bool, which candidates stay.
    """
    image_idxs = torch.arange(boxes.shape[0], device=boxes.device)
    num_cells = (image_idxs[-1] + 1) * num_classes
    # What is left out lies in one box in a cell of its own, so that NMS is quickly done with it.
    cells = torch.where(is_candidate, image_idxs[:, None] * num_classes + classes, num_cells)
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    boxes = torch.where(is_candidate[..., None], boxes, unit)
    # Two more boxes, which always stay: exporters take it for granted that NMS keeps two.
    boxes = torch.cat((boxes.flatten(0, 1), unit.expand(2, 4)))  # (N x T + 2, 4)
    all_scores = torch.cat((scores.flatten(), scores.new_full((2,), -2.0)))
    cells = torch.cat((cells.flatten(), num_cells + 1 + torch.arange(2, device=boxes.device)))
    row_length = (num_cells + 3).float().sqrt().ceil().long()
    columns_and_rows = torch.stack((cells % row_length, cells // row_length), dim=1)
    shifts = columns_and_rows * (boxes.max().ceil() + 1)
    keep = nms(boxes + shifts.repeat(1, 2), all_scores, iou_thresh)
    is_kept = torch.zeros_like(all_scores, dtype=torch.bool).index_fill(0, keep, 1)
    return is_kept[:-2].view_as(scores) & is_candidate
