"""What every sample-selection rule has in common.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), Mn boxes of image n,
M = sum(Mn) boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor

from .geometry import box_areas, paired_intersection
from .selection import BACKGROUND, IGNORED, box_chunks, max_per_image_


class DenseMatcher(ABC):
    """Assigns the anchors of a batch to ground-truth boxes.

    A rule implements :meth:`match` on plain float32 tensors; calling the matcher takes
    Detectron2's structures (or plain tensors), leaves autocast and records no gradients. A
    matcher knows nothing of classes, losses or configs.

    Attributes:
        last_stats: Scalars that describe the last call, as 0-dim tensors on the boxes' device
            (reading them on the host is left to the caller): ``num_ignored``, anchors per image
            that are ignored, where the rule or ``ignore_iof_thresh`` ignores any, and what a rule
            adds. The meta-architecture logs them as ``atss/<name>``.
        grid_sizes: Argument of the last call, for :meth:`match`.
    """

    def __init__(self, *, ignore_iof_thresh: float | None = None) -> None:
        """
        Args:
            ignore_iof_thresh: Background anchors become ignored when an ignore region of their
                image covers more than this share of their area. None: ignore regions get no
                positives, and the anchors in them are background like all others.

        Raises:
            ValueError: The threshold is not in [0, 1).
        """
        if ignore_iof_thresh is not None and not 0 <= ignore_iof_thresh < 1:
            raise ValueError(
                f"ignore_iof_thresh must be None or in [0, 1), got {ignore_iof_thresh}"
            )
        self.ignore_iof_thresh = ignore_iof_thresh
        self.last_stats: dict[str, Tensor] = {}
        self.grid_sizes: Sequence[tuple[int, int]] | None = None

    @torch.no_grad()
    def __call__(
        self,
        anchors: Sequence[Boxes | Tensor],
        gt_boxes: Sequence[Boxes | Tensor],
        gt_ignore: Sequence[Tensor] | None = None,
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """
        Args:
            anchors: L levels of anchors in Detectron2's order (row by row, the anchors of one
                location adjacent), each (Ri, 4) XYXY in pixels, shared by all images.
            gt_boxes: N images, each (Mn, 4) XYXY in pixels.
            gt_ignore: N images, each (Mn,) bool: true for a box that is an ignore region (a
                crowd), not an object. It gets no positives, but still counts in the indices of
                its image. None: there are no such regions.
            grid_sizes: (Hi, Wi) of the feature maps, if the anchors of every level lie on a grid,
                as those of Detectron2's ``DefaultAnchorGenerator``. None: rules that want to
                know look at the anchors, for which the host waits for the device.

        Returns:
            (N, R) int64: index into the boxes of the image, :data:`BACKGROUND` (-1) or
            :data:`IGNORED` (-2).

        Raises:
            ValueError: Anchors or boxes are not (n, 4), or ``gt_ignore`` or ``grid_sizes`` do not
                fit them.
        """
        matched = self.match_batch(anchors, gt_boxes, gt_ignore, grid_sizes)  # (N, R)
        counts = torch.tensor([len(b) for b in gt_boxes], dtype=torch.int64)
        first_idxs = (torch.cumsum(counts, 0) - counts).to(matched.device)[:, None]  # (N, 1)
        return torch.where(matched >= 0, matched - first_idxs, matched)

    @torch.no_grad()
    def match_batch(
        self,
        anchors: Sequence[Boxes | Tensor],
        gt_boxes: Sequence[Boxes | Tensor],
        gt_ignore: Sequence[Tensor] | None = None,
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """As calling the matcher, with indices into the boxes of all images, one after the other.

        Returns:
            (N, R) int64: index into the M boxes of the batch, :data:`BACKGROUND` or
            :data:`IGNORED`.
        """
        anchors = [_as_tensor(a) for a in anchors]
        gt_boxes = [_as_tensor(b) for b in gt_boxes]
        if not anchors:
            raise ValueError("a matcher needs at least one level of anchors, got an empty list")
        device = anchors[0].device
        boxes = torch.cat(gt_boxes) if gt_boxes else anchors[0].new_zeros(0, 4)  # (M, 4)
        boxes = boxes.to(device)
        # The image of each box (M,), made on the host, where the numbers of boxes are known.
        image_idxs = torch.tensor(
            [i for i, b in enumerate(gt_boxes) for _ in range(len(b))], dtype=torch.int64
        ).to(device, non_blocking=True)
        regions = None
        if gt_ignore is not None and gt_boxes:
            is_region = _cat_flags(gt_ignore, gt_boxes).to(device)[:, None]  # (M, 1)
            # Boxes of no area are neutral: no rule gives them an anchor, and they cover none.
            boxes, regions = boxes.masked_fill(is_region, 0), boxes.masked_fill(~is_region, 0)

        with torch.autocast(device.type, enabled=False):
            self.last_stats = {}
            self.grid_sizes = grid_sizes
            matched = self.match(anchors, boxes, image_idxs, len(gt_boxes))  # (N, R)
            if self.ignore_iof_thresh is not None:
                if regions is not None:
                    covered = self._is_covered(torch.cat(anchors), regions, image_idxs, matched)
                    matched = torch.where(covered & (matched == BACKGROUND), IGNORED, matched)
                num_ignored = (matched == IGNORED).sum()
                self.last_stats["num_ignored"] = num_ignored / max(len(gt_boxes), 1)
        return matched

    @abstractmethod
    def match(
        self, anchors: list[Tensor], boxes: Tensor, image_idxs: Tensor, num_images: int
    ) -> Tensor:
        """Applies the rule to a whole batch at once.

        Args:
            anchors: L levels, each (Ri, 4) float32.
            boxes: (M, 4) float32 boxes of all images, one after the other. A box whose width or
                height is not positive must get no positive: ignore regions arrive as such.
            image_idxs: (M,) int64 image of each box, ascending.
            num_images: N.

        Returns:
            (N, R) int64 index into ``boxes``, or :data:`BACKGROUND`, or :data:`IGNORED`.
        """

    def _is_covered(
        self, anchors: Tensor, regions: Tensor, image_idxs: Tensor, matched: Tensor
    ) -> Tensor:
        """Mask (N, R) of the anchors that one of the regions (M, 4) of their image covers."""
        covered = torch.zeros_like(matched, dtype=torch.int32)
        areas = box_areas(anchors)  # (R,)
        for rows in box_chunks(regions, len(anchors)):
            intersection = paired_intersection(anchors, regions[rows, None])  # (m, R)
            is_covered = intersection > self.ignore_iof_thresh * areas
            max_per_image_(covered, is_covered.int(), image_idxs[rows])
        return covered > 0


def _as_tensor(boxes: Boxes | Tensor) -> Tensor:
    tensor = boxes.tensor if isinstance(boxes, Boxes) else boxes
    if tensor.dim() != 2 or tensor.shape[1] != 4:
        raise ValueError(f"boxes must have shape (n, 4), got {tuple(tensor.shape)}")
    return tensor.detach().float()


def _cat_flags(gt_ignore: Sequence[Tensor], gt_boxes: Sequence[Tensor]) -> Tensor:
    """Flags (M,) of all images, checked against the numbers of boxes."""
    if len(gt_ignore) != len(gt_boxes):
        raise ValueError(f"gt_ignore has {len(gt_ignore)} images, gt_boxes has {len(gt_boxes)}")
    for i, (flags, boxes) in enumerate(zip(gt_ignore, gt_boxes)):
        if flags.dtype != torch.bool or flags.shape != boxes.shape[:1]:
            raise ValueError(
                f"gt_ignore[{i}] must be bool of shape ({len(boxes)},), one flag for each box of "
                f"the image, got {flags.dtype} of shape {tuple(flags.shape)}"
            )
    return torch.cat(list(gt_ignore))
