"""TAL and SimOTA as mmdetection computes them: all anchors against all boxes, image by image.

Written from their description, with the same matrices: a row for every anchor, a column for every
box, and for SimOTA the class costs of all pairs at once.

Shapes: R anchors, M boxes of the image, K classes, V anchors in or near some box.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

_NOT_POSITIVE = -1e8  # below every IoU
_OUTSIDE = 1e5  # what an anchor outside the region of a box costs


def task_aligned(
    centers: Tensor, logits: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the box (R,) of every anchor of one image, or -1, and soft targets (R,): TOOD's rule.

    Args:
        centers: (R, 2) centers of the anchors.
        logits: (R, K).
        predicted: (R, 4) XYXY.
        boxes: (M, 4) XYXY, M >= 1.
        classes: (M,) int64.
    """
    num_anchors, num_boxes = len(centers), len(boxes)
    ious = box_iou(predicted, boxes)  # (R, M)
    alignments = logits.sigmoid()[:, classes] ** 1.0 * ious**6.0
    values, candidates = alignments.topk(min(13, num_anchors), dim=0)  # (13, M)

    slots = (candidates + num_anchors * torch.arange(num_boxes, device=boxes.device)).flatten()
    x, y = (
        axis.expand(num_boxes, num_anchors).flatten()[slots].view(-1, num_boxes)
        for axis in centers.unbind(dim=1)
    )
    sides = (x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y)
    is_positive = (values > 0) & (torch.stack(sides).amin(dim=0) > 0.01)

    slots = slots[is_positive.flatten()]
    quality = torch.full_like(ious, _NOT_POSITIVE).t().flatten()  # (M x R,)
    quality[slots] = ious.t().flatten()[slots]
    best, matched = quality.view(num_boxes, num_anchors).max(dim=0)  # (R,)
    matched = torch.where(best == _NOT_POSITIVE, -1, matched)

    soft = torch.zeros_like(best)
    positives = (matched >= 0).nonzero()[:, 0]  # (P,)
    of_positives = matched[positives]
    values, ious = alignments[positives, of_positives], ious[positives, of_positives]
    for box in of_positives.unique():
        of_box = of_positives == box
        scaled = values[of_box] / (values[of_box].max() + 1e-7) * ious[of_box].max()
        soft[positives[of_box]] = scaled
    return matched, soft


def sim_ota(
    centers: Tensor,
    strides: Tensor,
    logits: Tensor,
    predicted: Tensor,
    boxes: Tensor,
    classes: Tensor,
) -> Tensor:
    """Returns the box (R,) of every anchor of one image, or -1, by SimOTA, radius 2.5 in the box.

    Args:
        centers: (R, 2) centers of the anchors.
        strides: (R,) of the anchors.
        logits: (R, K).
        predicted: (R, 4) XYXY.
        boxes: (M, 4) XYXY, M >= 1.
        classes: (M,) int64.
    """
    is_in_box = _is_inside(centers, boxes[None])  # (R, M)
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = 2.5 * strides[:, None, None]
    regions = torch.cat((box_centers - reach, box_centers + reach), dim=2)  # (R, M, 4)
    is_near = _is_inside(centers, regions)
    is_valid = is_in_box.any(dim=1) | is_near.any(dim=1)  # (R,)
    is_in_both = (is_in_box & is_near)[is_valid]  # (V, M)

    ious = box_iou(predicted[is_valid], boxes)  # (V, M)
    num_boxes = len(boxes)
    one_hot = F.one_hot(classes, logits.shape[1]).float()  # (M, K)
    scores = logits[is_valid].sigmoid()[:, None].repeat(1, num_boxes, 1)  # (V, M, K)
    targets = one_hot[None].repeat(len(ious), 1, 1)
    class_costs = F.binary_cross_entropy(scores, targets, reduction="none").sum(dim=2)  # (V, M)
    costs = class_costs - 3 * (ious + 1e-8).log() + _OUTSIDE * ~is_in_both

    wanted = torch.zeros_like(costs, dtype=torch.uint8)  # (V, M)
    top_ious = ious.topk(min(10, len(ious)), dim=0).values
    counts = top_ious.sum(dim=0).int().clamp(min=1)
    for box in range(num_boxes):
        cheapest = costs[:, box].topk(counts[box].item(), largest=False).indices
        wanted[cheapest, box] = 1
    is_contested = wanted.sum(dim=1) > 1
    if is_contested.any():
        best = costs[is_contested].argmin(dim=1)
        wanted[is_contested] = F.one_hot(best, num_boxes).to(wanted)
    best, box_idxs = wanted.max(dim=1)  # (V,)
    matched = torch.full_like(is_valid, -1, dtype=torch.int64)
    matched[is_valid] = torch.where(best > 0, box_idxs, -1)
    return matched


def _is_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the mask (R, M) of points (R, 2) in boxes (R or 1, M, 4)."""
    x, y = points[:, None].unbind(dim=2)  # (R, 1)
    sides = (x - boxes[..., 0], y - boxes[..., 1], boxes[..., 2] - x, boxes[..., 3] - y)
    return torch.stack(sides, dim=2).amin(dim=2) > 0
