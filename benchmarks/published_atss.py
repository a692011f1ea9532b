"""ATSS as its published implementations compute it: all anchors against all boxes.

Written from their description, image by image, with the same matrices: a row for every anchor, a
column for every box.

Shapes: L levels of Ri anchors, R = sum(Ri), M boxes of the image, C = sum_i min(k, Ri) candidates
of a box.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

_NOT_POSITIVE = -1e8  # below every IoU


def match_image(levels: list[Tensor], boxes: Tensor, topk: int = 9) -> Tensor:
    """Returns the box of every anchor of one image.

    Args:
        levels: L levels of anchors, each (Ri, 4) XYXY.
        boxes: (M, 4) XYXY, M >= 1.
        topk: k, with one anchor per location.

    Returns:
        (R,) int64 index of the box that the anchor is positive for, or -1.
    """
    anchors = torch.cat(levels)
    num_anchors, num_boxes = len(anchors), len(boxes)
    ious = box_iou(anchors, boxes)  # (R, M)
    anchor_centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = (anchor_centers[:, None] - box_centers).pow(2).sum(dim=-1).sqrt()  # (R, M)

    nearest, first = [], 0
    for level in levels:
        of_level = distances[first : first + len(level)]
        idxs = of_level.topk(min(topk, len(level)), dim=0, largest=False).indices
        nearest.append(idxs + first)
        first += len(level)
    candidates = torch.cat(nearest)  # (C, M)
    candidate_ious = ious.gather(0, candidates)
    thresholds = candidate_ious.mean(dim=0) + candidate_ious.std(dim=0)  # (M,)

    # Shifted by R for every box, candidates index the flat (M x R) matrices.
    slots = (candidates + num_anchors * torch.arange(num_boxes, device=boxes.device)).flatten()
    x, y = (
        axis.expand(num_boxes, num_anchors).flatten()[slots].view(-1, num_boxes)
        for axis in anchor_centers.unbind(dim=1)
    )  # (C, M)
    sides = (x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y)
    is_inside = torch.stack(sides).amin(dim=0) > 0.01
    is_positive = (candidate_ious >= thresholds) & is_inside  # (C, M)

    slots = slots[is_positive.flatten()]
    quality = torch.full_like(ious, _NOT_POSITIVE).t().flatten()  # (M x R,)
    quality[slots] = ious.t().flatten()[slots]
    best, matched = quality.view(num_boxes, num_anchors).max(dim=0)  # (R,)
    return torch.where(best == _NOT_POSITIVE, -1, matched)


def match_images(levels: list[Tensor], gt_boxes: list[Tensor], topk: int = 9) -> Tensor:
    """Returns the boxes of all images (N, R), matched one image after the other."""
    return torch.stack([match_image(levels, boxes, topk) for boxes in gt_boxes])
