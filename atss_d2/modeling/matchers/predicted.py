"""Finds the anchors whose predictions suit each box best, without looking at every pair.

Neighboring anchors form blocks. Their predictions bound how well any anchor of a block can suit a
box: the IoU by the hull and the areas of the predicted boxes, the score by the highest logit. The
anchors of blocks with high bounds are compared exactly, until no other block can contain a better
one. On a GPU, the host would have to wait to learn that, so all pairs are compared there. Both ways
find the same anchors.

How well an anchor suits a box is an int32, its merit; :data:`NO_MERIT` stands for not at all.

Shapes: N images, R anchors, B blocks, K classes, M boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..geometry import (
    box_areas,
    has_area,
    paired_intersection,
    paired_iou,
)
from ..nouns import Scene
from .selection import box_chunks

NO_MERIT = -(2**31)
BLOCK_SIZE = 16  # anchors
_FIRST_BLOCKS = 16  # compared before the others, per box
_MARGIN = 1e-5  # bounds are looser by this share, much more than float32 rounds
_LOW_BITS = 2**31 - 1
_NO_KEY = (NO_MERIT << 32) + _LOW_BITS  # of anchor 0


class PredictedPairs:
    """Measures of pairs of a box and an anchor of its image, and their bounds in blocks.

    ``slots`` are indices into the N x R anchors of all images, ``box_idxs`` indices into the M
    boxes; both broadcast.

    Attributes:
        scene: A scene with predictions and classes.
        num_anchors: R.
        has_area: (M,) bool; boxes without area match nothing.
    """

    def __init__(self, scene: Scene) -> None:
        logits, boxes, _ = scene.predictions
        self.scene = scene
        self.num_anchors = boxes.shape[1]
        self.has_area = has_area(scene.boxes)
        corners = boxes.permute(2, 0, 1).contiguous()  # (4, N, R)
        # Predictions that have overflowed overlap nothing.
        sides = corners[2:] - corners[:2]
        is_valid = ((sides > 0) & (sides < torch.inf)).all(dim=0)
        self._corners = corners.masked_fill_(~is_valid, 0)
        self._logits = logits.contiguous()

    def slots(self, box_idxs: Tensor, anchors: Tensor) -> Tensor:
        """Returns the slots of anchors in the images of boxes."""
        return self.scene.image_idxs[box_idxs] * self.num_anchors + anchors

    def ious(self, box_idxs: Tensor, slots: Tensor) -> Tensor:
        """Returns the IoU of each box with the predicted one."""
        ious = paired_iou(_select(self._corners, slots), self.scene.boxes[box_idxs])
        return ious.nan_to_num_(0.0, 0.0, 0.0)  # of boxes whose areas overflow

    def logits(self, box_idxs: Tensor, slots: Tensor) -> Tensor:
        """Returns the logit of the class of each box."""
        return self._of_classes(self._logits, box_idxs, slots)

    def overlapping_blocks(self, rows: slice) -> Tensor:
        """Returns the mask (m, B) of the blocks with predicted boxes that may overlap a box."""
        hulls = self._block_boxes[:4].index_select(1, self.scene.image_idxs[rows])  # (4, m, B)
        x1, y1, x2, y2 = self.scene.boxes[rows, :, None].unbind(dim=1)  # (m, 1)
        is_near = (hulls[0] < x2) & (hulls[1] < y2) & (hulls[2] > x1) & (hulls[3] > y1)
        return is_near & self.has_area[rows, None]

    def iou_bounds(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        """Returns upper bounds of :meth:`ious` in blocks.

        With areas A of a box and a of a predicted one, which lies in a hull that shares H with the
        box, at most I = min(a, H) is shared. I / (A + a - I) is largest where a is nearest to H.
        """
        of_blocks = _select(self._block_boxes, self._block_slots(box_idxs, blocks))  # (P, 6)
        boxes = self.scene.boxes.index_select(0, box_idxs)
        shared = paired_intersection(of_blocks[..., :4], boxes)
        areas = torch.minimum(torch.maximum(shared, of_blocks[..., 4]), of_blocks[..., 5])
        shared = torch.minimum(shared, areas)
        bounds = shared / (box_areas(boxes) + areas - shared)
        return bounds.nan_to_num_(0.0, 0.0, 0.0) * (1 + _MARGIN)

    def logit_bounds(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        """Returns upper bounds of :meth:`logits` in blocks; infinity for blocks with a NaN."""
        slots = self._block_slots(box_idxs, blocks)
        return self._of_classes(self._block_logits, box_idxs, slots)

    def _of_classes(self, logits: Tensor, box_idxs: Tensor, slots: Tensor) -> Tensor:
        idxs = slots * logits.shape[-1] + self.scene.classes[box_idxs]
        return logits.view(-1).index_select(0, idxs.flatten()).view(idxs.shape)

    def _block_slots(self, box_idxs: Tensor, blocks: Tensor) -> Tensor:
        num_blocks = self._block_logits.shape[1]
        return self.scene.image_idxs.index_select(0, box_idxs) * num_blocks + blocks

    @cached_property
    def _block_boxes(self) -> Tensor:
        """Hulls of predicted boxes and their least and largest areas, (6, N, B)."""
        areas = box_areas(self._corners.movedim(0, -1))  # (N, R)
        least = torch.cat((self._corners[:2], areas[None]))
        least = -block_max(-least.masked_fill(areas <= 0, torch.inf), 2)
        most = torch.cat((self._corners[2:], areas[None]))
        most = block_max(most.masked_fill(areas <= 0, -torch.inf), 2)
        return torch.cat((least[:2], most[:2], least[2:], most[2:]))

    @cached_property
    def _block_logits(self) -> Tensor:
        """Highest logits (N, B, K)."""
        return block_max(self._logits, 1).nan_to_num_(torch.inf, torch.inf, -torch.inf)


def _select(rows: Tensor, slots: Tensor) -> Tensor:
    """Returns a view (..., D) of columns of rows (D, ...), whose other dimensions are flattened."""
    columns = rows.flatten(1).index_select(1, slots.flatten())
    return columns.view(len(rows), *slots.shape).movedim(0, -1)


def block_max(values: Tensor, dim: int) -> Tensor:
    """Returns the maxima (..., B, ...) of values (..., R, ...) in each block."""
    num_anchors = values.shape[dim]
    num_full = num_anchors // BLOCK_SIZE
    end = num_full * BLOCK_SIZE
    full = values.narrow(dim, 0, end).unflatten(dim, (num_full, BLOCK_SIZE)).amax(dim=dim + 1)
    if end == num_anchors:
        return full
    rest = values.narrow(dim, end, num_anchors - end).amax(dim=dim, keepdim=True)
    return torch.cat((full, rest), dim=dim)


def must_not_wait(tensor: Tensor) -> bool:
    """Returns whether the host would have to wait for a device to read a tensor."""
    return tensor.device.type != "cpu"


def sum_over_classes(logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns float64 sums (N, R) of a function of logits (N, R, K)."""
    rows = logits.flatten(0, 1)
    sums = [
        function(rows[chunk]).sum(dim=1, dtype=torch.float64)
        for chunk in box_chunks(rows, rows.shape[1])
    ]
    return torch.cat(sums).view(logits.shape[:2])


def as_merits(values: Tensor) -> Tensor:
    """Returns merits (...) that sort like float32 values (...); none for 0 and below, and NaN."""
    return torch.where(values > 0, values.view(torch.int32), NO_MERIT)


def as_values(merits: Tensor) -> Tensor:
    """Inverts :func:`as_merits`; :data:`NO_MERIT` is 0."""
    return merits.clamp(min=0).view(torch.float32)


def best_anchors(
    scene: Scene,
    k: int,
    *,
    merits: Callable[[Tensor, Tensor], Tensor],
    bounds: Callable[[Tensor, Tensor], Tensor],
    blocks: Callable[[slice], Tensor],
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Finds the anchors of highest merit for each box; of equal ones, the lower index comes first.

    Args:
        scene: Images, anchors and boxes.
        k: Anchors per box.
        merits: Returns the int32 merits of box indices (m, 1) and anchors (m, n) of their images.
        bounds: Returns upper bounds (P,) of the merits, of box indices and blocks (P,).
        blocks: Returns which blocks (m, B) may have anchors of merit, for a slice of the boxes.
        counts: (M,) 1 to k: how many of the k must be right. Default: all.

    Returns:
        Anchors (M, k'), k' = min(k, R), and their merits. Where a box has fewer anchors of merit,
        the others have :data:`NO_MERIT` and any index.
    """
    boxes, num_anchors = scene.boxes, sum(map(len, scene.anchors))
    k = min(k, num_anchors)
    is_read = not must_not_wait(boxes) and k > 0
    box_idxs = torch.arange(len(boxes), device=boxes.device)
    all_anchors = torch.arange(num_anchors, device=boxes.device)
    if counts is None:
        counts = torch.full_like(box_idxs, k)
    best = []
    pairs_per_box = num_anchors
    if is_read:  # at first, see _search
        pairs_per_box = max(num_anchors // (4 * BLOCK_SIZE), _FIRST_BLOCKS * BLOCK_SIZE)
    for rows in box_chunks(boxes, pairs_per_box):
        chunk = box_idxs[rows, None]  # (m, 1)
        if is_read:
            mask = blocks(rows)  # (m, B)
            of_box, block = mask.nonzero().unbind(dim=1)  # (P,)
            values = bounds(of_box + rows.start, block)
            found = torch.full((mask.numel(),), NO_MERIT, dtype=torch.int32)
            found.index_copy_(0, of_box * mask.shape[1] + block, values)
            found = found.view_as(mask)
            last = counts[rows, None].clamp(max=k) - 1
            best.append(_search(chunk, merits, found, k, last, num_anchors))
        else:
            anchors = all_anchors.expand(len(chunk), -1)  # (m, R)
            best.append(_keys(merits(chunk, anchors), anchors).topk(k, dim=1).values)
    keys = torch.cat(best)
    return _LOW_BITS - (keys & _LOW_BITS), _merits(keys)


def _search(
    box_idxs: Tensor,
    merits: Callable[[Tensor, Tensor], Tensor],
    bounds: Tensor,
    k: int,
    last: Tensor,
    num_anchors: int,
) -> Tensor:
    """Returns the keys (m, k) of the best anchors of a chunk of boxes, comparing block by block.

    Args:
        box_idxs: (m, 1).
        merits: See :func:`best_anchors`.
        bounds: (m, B).
        k: See there.
        last: (m, 1), the place among the k up to which the anchors must be right.
        num_anchors: R.
    """
    in_block = torch.arange(BLOCK_SIZE)

    def compare(box_idxs: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the merits and indices (m, n) of all anchors of blocks (m, ...)."""
        anchors = (blocks[..., None] * BLOCK_SIZE + in_block).flatten(1)
        if num_anchors % BLOCK_SIZE == 0:
            return merits(box_idxs, anchors), anchors
        is_beyond = anchors >= num_anchors  # the last block is shorter
        anchors = anchors.clamp_(max=num_anchors - 1)
        return merits(box_idxs, anchors).masked_fill_(is_beyond, NO_MERIT), anchors

    # First the blocks of the highest bounds, of each box as many.
    blocks = bounds.topk(min(_FIRST_BLOCKS, bounds.shape[1]), dim=1).indices
    none = torch.full((len(box_idxs), k), _NO_KEY)  # there may be fewer than k
    best = torch.cat((none, _keys(*compare(box_idxs, blocks))), dim=1).topk(k, dim=1).values
    least = _merits(best.gather(1, last))  # (m, 1)
    bounds = bounds.scatter(1, blocks, NO_MERIT)
    # Then all others that may hold an anchor as good as the last: a lower index comes first.
    rows, blocks = (bounds >= least.clamp(min=NO_MERIT + 1)).nonzero().unbind(dim=1)  # (P,)
    for part in box_chunks(rows, BLOCK_SIZE):
        found, anchors = compare(box_idxs[rows[part]], blocks[part, None])  # (p, BLOCK_SIZE)
        # k blocks that each have an anchor so good leave no place for worse ones.
        bounds.fill_(NO_MERIT)[rows[part], blocks[part]] = found.amax(dim=1)
        if k <= bounds.shape[1]:
            least = torch.maximum(least, bounds.topk(k, dim=1).values.gather(1, last))
        is_better = found >= least.clamp(min=NO_MERIT + 1)[rows[part]]
        block, place = is_better.nonzero().unbind(dim=1)  # (q,)
        best = _merge(best, rows[part][block], _keys(found[block, place], anchors[block, place]))
        least = _merits(best.gather(1, last))
    return best


def _merge(best: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """Returns the best (m, k) of keys (m, k) and of further keys (q,) of some rows (q,)."""
    num_rows, k = best.shape
    if not len(rows):
        return best
    rows = torch.cat((torch.arange(num_rows).repeat_interleave(k), rows))
    keys, order = torch.cat((best.flatten(), keys)).sort(descending=True)
    rows, by_row = rows[order].sort(stable=True)
    counts = torch.bincount(rows, minlength=num_rows)
    first = (counts.cumsum(0) - counts)[:, None] + torch.arange(k)  # (m, k)
    return keys[by_row][first]


def _merits(keys: Tensor) -> Tensor:
    return (keys >> 32).int()


def _keys(merits: Tensor, anchors: Tensor) -> Tensor:
    """Returns int64 keys that sort by merit, then by lower anchor."""
    return (merits.long() << 32) + (_LOW_BITS - anchors)
