"""Selection of the cheapest anchors, more of them where more predictions overlap the box.

What SimOTA (YOLOX) and the dynamic soft labels of RTMDet have in common; they differ in the cost.

Shapes: N images, Ri anchors of level i, R = sum(Ri), B blocks of anchors, K classes, M boxes of the
batch, m boxes of a chunk, C candidates of one box, P pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import box_centers
from ..nouns import Assignment, Scene
from .base import DenseMatcher, bound_value
from .predicted import (
    NO_MERIT,
    PredictedPairs,
    as_merits,
    as_values,
    best_anchors,
    block_max,
    must_not_wait,
)
from .selection import BACKGROUND, box_chunks

_LEAST_RANK = 0x7F800000  # bits of infinity, above those of all costs
_LOW_BITS = 2**31 - 1


class PairCosts(PredictedPairs):
    """Costs of pairs of a box and an anchor of its image.

    Attributes:
        centers: (R, 2) centers of the anchors.
        strides: (R,) of the anchors, pixels.
        is_candidate: (N, R) which anchors may be positive at all.
    """

    iou_epsilon: float

    def __init__(self, scene: Scene, strides: Sequence[int], iou_weight: float) -> None:
        super().__init__(scene)
        self.iou_weight = iou_weight
        self.level_strides = tuple(strides)
        self.centers = box_centers(torch.cat(scene.anchors))
        self.strides = torch.cat(
            [level.new_full((len(level),), s) for level, s in zip(scene.anchors, strides)]
        )
        self.is_candidate = self._near_any_box()
        self._block_has_candidates = block_max(self.is_candidate, 1)  # (N, B)

    @abstractmethod
    def regions(self, rows: slice, level: int) -> Tensor:
        """Returns the boxes (S, m, 4), S for each box of a slice, inside which candidates lie."""

    @abstractmethod
    def other_costs(self, box_idxs: Tensor, slots: Tensor, ious: Tensor) -> Tensor:
        """Returns what pairs cost besides the logarithm of the IoU."""

    @abstractmethod
    def least_other_costs(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        """Returns lower bounds of :meth:`other_costs` in blocks (P,); NaN counts as 0."""

    def is_preferred(self, box_idxs: Tensor, slots: Tensor) -> Tensor | None:
        """Returns which pairs come before all others, whatever they cost. None: no difference."""
        return None

    def overlaps(self, box_idxs: Tensor, anchors: Tensor) -> Tensor:
        """Returns the IoUs of candidates as merits."""
        slots = self.slots(box_idxs, anchors)
        return self._of_candidates(as_merits(self.ious(box_idxs, slots)), box_idxs, slots)

    def overlap_bounds(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        """Returns upper bounds of :meth:`overlaps`."""
        return as_merits(self.iou_bounds(box_idxs, blocks))

    def cheapness(self, box_idxs: Tensor, anchors: Tensor) -> Tensor:
        """Returns merits of candidates that are higher where costs are lower."""
        return self.cheapness_of_slots(box_idxs, self.slots(box_idxs, anchors))

    def cheapness_of_slots(self, box_idxs: Tensor, slots: Tensor) -> Tensor:
        """Works like :meth:`cheapness`, but on slots."""
        ious = self.ious(box_idxs, slots)
        costs = self.other_costs(box_idxs, slots, ious) + self._iou_costs(ious)
        ranks = _ranks(costs)
        preferred = self.is_preferred(box_idxs, slots)
        if preferred is not None:
            ranks = torch.where(preferred, ranks, ranks - _LEAST_RANK - 1)
        ranks = torch.where(costs < torch.inf, ranks, NO_MERIT)  # nor NaN
        return self._of_candidates(ranks, box_idxs, slots)

    def cheapness_bounds(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        """Returns upper bounds of :meth:`cheapness`."""
        costs = self._iou_costs(self.iou_bounds(box_idxs, blocks))
        costs += self.least_other_costs(box_idxs, blocks).nan_to_num_(0.0)
        return _ranks(costs * (1 - 1e-5) - 1e-5)  # what rounding cannot exceed

    def overlapping(self, rows: slice) -> Tensor:
        """Returns the mask (m, B) of blocks that may have candidates that overlap a box."""
        return self.overlapping_blocks(rows) & self.with_candidates(rows)

    def with_candidates(self, rows: slice) -> Tensor:
        """Returns the mask (m, B) of blocks that have candidates."""
        has_any = self._block_has_candidates[self.scene.image_idxs[rows]]
        return has_any & self.has_area[rows, None]

    def _of_candidates(self, merits: Tensor, box_idxs: Tensor, slots: Tensor) -> Tensor:
        mask = self.is_candidate.view(-1)[slots] & self.has_area[box_idxs]
        return torch.where(mask, merits, NO_MERIT)

    def _iou_costs(self, ious: Tensor) -> Tensor:
        return (ious + self.iou_epsilon).log() * -self.iou_weight

    def _near_any_box(self) -> Tensor:
        """Returns the mask (N, R) of the anchors inside a region of a box."""
        scene, counts = self.scene, []
        for level, centers in enumerate(self.centers.split(list(map(len, scene.anchors)))):
            count = torch.zeros(
                scene.num_images, len(centers), dtype=torch.int32, device=centers.device
            )
            for rows in box_chunks(scene.boxes, len(centers)):
                regions = self.regions(rows, level)[:, :, None]  # (S, m, 1, 4)
                inside = is_inside(centers, regions).any(dim=0)  # (m, Ri)
                inside = inside & self.has_area[rows, None]
                count.index_add_(0, scene.image_idxs[rows], inside.int())
            counts.append(count)
        return torch.cat(counts, dim=1) > 0


def is_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns whether (...) points (..., 2) lie inside boxes (..., 4), not on a side."""
    (x, y), (x1, y1, x2, y2) = points.unbind(dim=-1), boxes.unbind(dim=-1)
    return (x > x1) & (y > y1) & (x < x2) & (y < y2)


def _ranks(costs: Tensor) -> Tensor:
    """Returns int32 >= 0 that are higher for lower costs; costs below 0 count as 0."""
    return _LEAST_RANK - (costs.float().clamp(min=0) + 0.0).view(torch.int32)


class DynamicKMatcher(DenseMatcher):
    """Selects the k cheapest candidates of a box, where k follows from the predictions.

    k is the sum of the ``topk`` highest IoUs of predicted boxes of candidates with the box, rounded
    down, at least 1. An anchor that is among the k cheapest of several boxes goes to the box of the
    image for which it is the cheapest, whether or not that one wanted it. All other anchors are
    background.

    Ties are broken the same way on every device: of equally cheap anchors, the lower index is
    taken; of boxes that an anchor is equally cheap for, the lower index gets it. Predictions that
    are not finite match nothing.

    Its stats contain ``mean_k``, the mean over the boxes with an area, and ``num_contested``, the
    anchors per image that several boxes wanted.
    """

    needs_predictions = True

    def __init__(
        self,
        *,
        topk: int,
        iou_weight: float,
        strides: Sequence[int] | None,
        ignore_ioa_thresh: float | None,
    ) -> None:
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        if topk < 1:
            raise ValueError(f"topk must be >= 1, got {topk}")
        if iou_weight < 0:
            raise ValueError(f"iou_weight must be >= 0, got {iou_weight}")
        if strides is not None:
            strides = tuple(strides)
            if not strides or min(strides) <= 0:
                raise ValueError(f"strides must be positive, got {list(strides)}")
        self.topk = topk
        self.iou_weight = iou_weight
        self.strides = strides

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:
        self.strides = bound_value(self, "strides", self.strides, tuple(strides))

    @abstractmethod
    def costs(self, scene: Scene, strides: Sequence[int]) -> PairCosts:
        """Returns the costs of the pairs of a scene."""

    def match(self, scene: Scene) -> Assignment:
        if self.strides is None or len(self.strides) != len(scene.anchors):
            raise ValueError(
                f"the matcher has strides={self.strides}, but there are {len(scene.anchors)} "
                "levels of anchors: give it the stride of each"
            )
        costs = self.costs(scene, self.strides)
        _, overlaps = best_anchors(
            scene,
            self.topk,
            merits=costs.overlaps,
            bounds=costs.overlap_bounds,
            blocks=costs.overlapping,
        )
        # In float64, where the order of the sum does not matter.
        counts = as_values(overlaps).double().sum(dim=1).long().clamp(min=1)  # (M,)
        candidates, ranks = best_anchors(
            scene,
            self.topk,
            merits=costs.cheapness,
            bounds=costs.cheapness_bounds,
            blocks=costs.with_candidates,
            counts=counts,
        )  # (M, C)
        places = torch.arange(candidates.shape[1], device=counts.device)
        is_wanted = (ranks > NO_MERIT) & (places < counts[:, None])
        matched, num_contested = _settle(costs, candidates, is_wanted)
        num_real = costs.has_area.sum().clamp(min=1)
        stats = {
            "mean_k": (counts * costs.has_area).sum() / num_real,
            "num_contested": num_contested / max(scene.num_images, 1),
        }
        return Assignment(matched, stats=stats)


def _settle(costs: PairCosts, candidates: Tensor, is_wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Gives every wanted anchor to one box.

    Args:
        costs: Costs.
        candidates: (M, C) anchors.
        is_wanted: (M, C).

    Returns:
        (N, R) index of the box, or :data:`BACKGROUND`; and how many anchors several boxes wanted.
    """
    num_slots, device = costs.is_candidate.numel(), candidates.device
    box_idxs = torch.arange(len(candidates), device=device)[:, None]
    slots = costs.slots(box_idxs, candidates).masked_fill(~is_wanted, num_slots).flatten()
    num_claims = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
    num_claims.scatter_add_(0, slots, torch.ones_like(slots))
    matched = torch.full((num_slots + 1,), BACKGROUND, device=device)  # the last is of no anchor
    matched.scatter_(0, slots, box_idxs.expand_as(candidates).flatten())
    is_contested = num_claims[:-1] > 1
    if len(candidates) > 1:
        if must_not_wait(slots):
            slots = slots.clamp(max=num_slots - 1)
        else:
            slots = is_contested.nonzero()[:, 0]
        winners = [_cheapest(costs, slots[rows]) for rows in box_chunks(slots, len(candidates))]
        matched[slots] = torch.where(is_contested[slots], torch.cat(winners), matched[slots])
    return matched[:-1].view_as(costs.is_candidate), is_contested.sum()


def _cheapest(costs: PairCosts, slots: Tensor) -> Tensor:
    """Returns the box (P,) of the image for which each anchor is the cheapest."""
    image_idxs = costs.scene.image_idxs
    box_idxs = torch.arange(len(image_idxs), device=slots.device)[None]  # (1, M)
    ranks = costs.cheapness_of_slots(box_idxs, slots[:, None].expand(-1, len(image_idxs)))
    is_same = image_idxs == (slots // costs.num_anchors)[:, None]
    keys = (ranks.masked_fill(~is_same, NO_MERIT).long() << 31) + (_LOW_BITS - box_idxs)
    return _LOW_BITS - (keys.amax(dim=1) & _LOW_BITS)
