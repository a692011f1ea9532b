"""Regression losses, of decoded boxes or of the values that the box coder takes.

All are computed in at least float32.

Shapes: R anchors (of one image or of a whole batch).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widen

_IOU_EPS = 1e-7  # added to areas and squared lengths in denominators


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = _IOU_EPS) -> Tensor:
    """Computes 1 - GIoU (R,) of paired XYXY boxes (R, 4), arXiv 1902.09630; in [0, 2].

    ``boxes`` may be degenerate or inverted, as predictions can be; their area then counts as 0.
    """
    boxes, targets = widen(boxes), widen(targets)
    iou, union, hull_sides = _iou(boxes, targets, eps)
    hull = _product(hull_sides)
    return 1 - iou + (hull - union) / (hull + eps)


def diou_loss(boxes: Tensor, targets: Tensor, eps: float = _IOU_EPS) -> Tensor:
    """Computes 1 - DIoU (R,) of paired XYXY boxes (R, 4), arXiv 1911.08287; in [0, 2].

    DIoU is IoU minus the squared distance of the centers, relative to the squared diagonal of the
    hull.
    """
    boxes, targets = widen(boxes), widen(targets)
    iou, _, hull_sides = _iou(boxes, targets, eps)
    offsets = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]) / 2  # (R, 2)
    return 1 - iou + offsets.square().sum(dim=1) / (hull_sides.square().sum(dim=1) + eps)


def ciou_loss(boxes: Tensor, targets: Tensor, eps: float = _IOU_EPS) -> Tensor:
    """Computes 1 - CIoU (R,) of paired XYXY boxes (R, 4), arXiv 1911.08287: DIoU and aspect ratio.

    The trade-off of the aspect-ratio term gets no gradient, as in the paper. Boxes without area
    have a finite loss.
    """
    boxes, targets = widen(boxes), widen(targets)
    iou, _, _ = _iou(boxes, targets, eps)
    angle = _aspect_angle(targets, eps) - _aspect_angle(boxes, eps)  # (R,)
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + eps)
    return diou_loss(boxes, targets, eps) + trade_off * aspect


def _iou(boxes: Tensor, targets: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns IoU (R,), union (R,) and sides (R, 2) of the hull of paired boxes (R, 4)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    target_sides = (targets[:, 2:] - targets[:, :2]).clamp(min=0)
    lower = torch.maximum(boxes[:, :2], targets[:, :2])
    upper = torch.minimum(boxes[:, 2:], targets[:, 2:])
    intersection = _product((upper - lower).clamp(min=0))
    union = _product(sides) + _product(target_sides) - intersection
    hull_lower = torch.minimum(boxes[:, :2], targets[:, :2])
    hull_upper = torch.maximum(boxes[:, 2:], targets[:, 2:])
    return intersection / (union + eps), union, (hull_upper - hull_lower).clamp(min=0)


def _product(sides: Tensor) -> Tensor:
    """Multiplies two columns (R, 2) to (R,); the gradient of ``prod`` takes twelve operators."""
    width, height = sides.unbind(dim=1)
    return width * height


def _aspect_angle(boxes: Tensor, eps: float) -> Tensor:
    """Returns arctan(width / height) (R,) of XYXY boxes (R, 4)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return torch.atan(sides[:, 0] / (sides[:, 1] + eps))


# Losses (R,) of decoded boxes (R, 4) and their targets (R, 4), by the name that configs use.
BOX_IOU_LOSSES = {
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}
BOX_REG_LOSS_TYPES = ("smooth_l1", *BOX_IOU_LOSSES)


def box_reg_loss(
    deltas: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    *,
    box2box_transform,
    loss_type: str = "giou",
    smooth_l1_beta: float = 0.11,
) -> Tensor:
    """Computes the regression loss (R,) of each anchor.

    Args:
        deltas: (R, 4), as the box coder takes them.
        anchors: (R, 4) XYXY, pixels.
        boxes: (R, 4) XYXY target of each anchor, pixels.
        box2box_transform: Box coder.
        loss_type: ``"smooth_l1"`` compares the deltas themselves (RetinaNet), summed over the
            four; ``"giou"``, ``"diou"`` and ``"ciou"`` compare the decoded boxes.
        smooth_l1_beta: Where smooth L1 turns from a parabola to a line; 0 is L1.
    """
    if loss_type == "smooth_l1":
        targets = box2box_transform.get_deltas(anchors, boxes)
        return F.smooth_l1_loss(deltas, targets, beta=smooth_l1_beta, reduction="none").sum(dim=1)
    return BOX_IOU_LOSSES[loss_type](box2box_transform.apply_deltas(deltas, anchors), boxes)
