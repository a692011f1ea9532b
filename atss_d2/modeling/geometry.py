"""Measures of boxes and points, which broadcast and keep the type of the input.

Boxes are XYXY in pixels, (..., 4); points are (..., 2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_centers(boxes: Tensor) -> Tensor:
    """Returns the centers (..., 2) of boxes."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_areas(boxes: Tensor) -> Tensor:
    """Returns the areas (...) of boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def has_area(boxes: Tensor) -> Tensor:
    """Returns whether (...) boxes have a positive, finite width and height; false for NaN."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return ((sides > 0) & (sides < torch.inf)).all(dim=-1)


def paired_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the areas (...) that two broadcastable sets of boxes share."""
    width, height = (
        torch.minimum(boxes1[..., i + 2], boxes2[..., i + 2])
        - torch.maximum(boxes1[..., i], boxes2[..., i])
        for i in (0, 1)
    )
    return width.clamp_(min=0) * height.clamp_(min=0)


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the IoU (...) of two broadcastable sets of boxes; 0 for two empty boxes."""
    intersection = paired_intersection(boxes1, boxes2)
    union = (box_areas(boxes1) + box_areas(boxes2)).sub_(intersection)
    return (intersection / union).masked_fill_(union <= 0, 0)


def paired_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the GIoU (...), -1 to 1: IoU minus the share of the hull outside both boxes."""
    intersection = paired_intersection(boxes1, boxes2)
    union = box_areas(boxes1) + box_areas(boxes2) - intersection
    iou = (intersection / union).masked_fill_(union <= 0, 0)
    hull = box_areas(_hull(boxes1, boxes2))
    return iou - ((hull - union) / hull).masked_fill_(hull <= 0, 0)


def paired_diou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the distance IoU (...), -1 to 1.

    It is the IoU minus the squared distance of the centers, relative to the squared diagonal of the
    hull.
    """
    hull = _hull(boxes1, boxes2)
    diagonal = (hull[..., 2:] - hull[..., :2]).square().sum(dim=-1)
    distance = (box_centers(boxes1) - box_centers(boxes2)).square().sum(dim=-1)
    iou = paired_iou(boxes1, boxes2)
    return iou - (distance / diagonal).masked_fill_(diagonal <= 0, 0)


def _hull(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the smallest boxes (..., 4) around pairs of boxes."""
    lower = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    upper = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    return torch.cat((lower, upper), dim=-1)


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the distances (..., 4) from points to the left, top, right and bottom of boxes.

    A distance is negative where the point is beyond that side.
    """
    return torch.stack(_distances(points, boxes), dim=-1)


def side_distance_bounds(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the minimum and the maximum (...) of :func:`side_distances`."""
    left, top, right, bottom = _distances(points, boxes)
    least = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    return least, torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))


def least_side_distance(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the minimum (...) of :func:`side_distances`: how far inside its box a point is."""
    left, top, right, bottom = _distances(points, boxes)
    return torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))


def _distances(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = points[..., 0], points[..., 1]
    return x - boxes[..., 0], y - boxes[..., 1], boxes[..., 2] - x, boxes[..., 3] - y
