"""What every sample-selection rule has in common.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), Mn boxes of image n,
M = sum(Mn) boxes of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


class DenseMatcher(ABC):
    """Assigns the anchors of a batch to ground-truth boxes.

    A rule implements :meth:`match` on plain float32 tensors; calling the matcher takes
    Detectron2's structures (or plain tensors), leaves autocast and records no gradients. A
    matcher knows nothing of classes, losses or configs.

    Attributes:
        last_stats: Scalars that describe the last call, as 0-dim tensors on the boxes' device
            (reading them on the host is left to the caller). The meta-architecture logs them as
            ``atss/<name>``.
    """

    def __init__(self) -> None:
        self.last_stats: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, anchors: Sequence[Boxes | Tensor], gt_boxes: Sequence[Boxes | Tensor]
    ) -> Tensor:
        """
        Args:
            anchors: L levels of anchors in Detectron2's order (row by row, the anchors of one
                location adjacent), each (Ri, 4) XYXY in pixels, shared by all images.
            gt_boxes: N images, each (Mn, 4) XYXY in pixels.

        Returns:
            (N, R) int64: index into the boxes of the image, :data:`BACKGROUND` (-1) or
            :data:`IGNORED` (-2).
        """
        anchors = [_as_tensor(a) for a in anchors]
        gt_boxes = [_as_tensor(b) for b in gt_boxes]
        if not anchors:
            raise ValueError("a matcher needs at least one level of anchors, got an empty list")
        device = anchors[0].device
        counts = torch.tensor([len(b) for b in gt_boxes], dtype=torch.int64)
        # The batch as one list of boxes: (M, 4) and the image of each box.
        boxes = torch.cat(gt_boxes) if gt_boxes else anchors[0].new_zeros(0, 4)  # (M, 4)
        image_idxs = torch.repeat_interleave(torch.arange(len(counts)), counts)
        first_idxs = torch.cumsum(counts, 0) - counts
        with torch.autocast(device.type, enabled=False):
            self.last_stats = {}
            matched = self.match(
                anchors, boxes.to(device), image_idxs.to(device), len(gt_boxes)
            )  # (N, R) index into the batch's boxes
        return torch.where(matched >= 0, matched - first_idxs.to(device)[:, None], matched)

    @abstractmethod
    def match(
        self, anchors: list[Tensor], boxes: Tensor, image_idxs: Tensor, num_images: int
    ) -> Tensor:
        """Applies the rule to a whole batch at once.

        Args:
            anchors: L levels, each (Ri, 4) float32.
            boxes: (M, 4) float32 boxes of all images, one after the other.
            image_idxs: (M,) int64 image of each box, ascending.
            num_images: N.

        Returns:
            (N, R) int64 index into ``boxes``, or :data:`BACKGROUND`, or :data:`IGNORED`.
        """


def _as_tensor(boxes: Boxes | Tensor) -> Tensor:
    tensor = boxes.tensor if isinstance(boxes, Boxes) else boxes
    if tensor.dim() != 2 or tensor.shape[1] != 4:
        raise ValueError(f"boxes must have shape (n, 4), got {tuple(tensor.shape)}")
    return tensor.detach().float()


def box_centers(boxes: Tensor) -> Tensor:
    """Centres (..., 2) of XYXY boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_areas(boxes: Tensor) -> Tensor:
    """Areas (...) of XYXY boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (...) of two broadcastable sets of XYXY boxes (..., 4); 0 for two empty boxes."""
    lower = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    upper = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (upper - lower).clamp(min=0).prod(dim=-1)
    union = box_areas(boxes1) + box_areas(boxes2) - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def center_margins(centers: Tensor, boxes: Tensor) -> Tensor:
    """Smallest of the distances (...) from points (..., 2) to the four sides of XYXY boxes."""
    return torch.cat((centers - boxes[..., :2], boxes[..., 2:] - centers), dim=-1).amin(dim=-1)
