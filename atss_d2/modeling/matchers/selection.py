"""What several rules do the same way: anchors near a box, anchors wanted by several boxes.

Ties are settled by integer keys that are all different, so that the result does not depend on
the device or on the order of execution.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), M boxes of the batch, m boxes of a
chunk, C candidates of one box.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .geometry import box_centers

BACKGROUND = -1
IGNORED = -2

# Entries of the largest temporary matrix, (boxes of a chunk, anchors): 32 MiB of int64. Boxes are
# taken in chunks, so memory does not grow with their number.
MAX_CHUNK_ENTRIES = 2**22

_NO_BOX = -1  # below every key of priority_keys
_INDEX_BITS = 31


def box_chunks(num_boxes: int, num_anchors: int) -> Iterator[slice]:
    """Slices of the boxes whose (m, num_anchors) matrices fit in memory; at least one slice."""
    size = max(1, MAX_CHUNK_ENTRIES // max(num_anchors, 1))
    for start in range(0, max(num_boxes, 1), size):
        yield slice(start, start + size)


def stable_topk(values: Tensor, k: int, *, largest: bool) -> Tensor:
    """Indices (m, k) of the k largest or smallest values (m, r) of each row, lower index first.

    ``topk`` promises no order among equal values, so it runs on integer keys: floats that are not
    negative sort like their bit patterns (-0.0 sorts below 0), the index fills the low bits.
    """
    keys = values.view(torch.int32).long() << 32
    idxs = torch.arange(values.shape[1], device=values.device)
    keys += idxs.flip(0) if largest else idxs
    return keys.topk(k, dim=1, largest=largest).indices


def nearest_anchors(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Indices (m, k) of the k centres (r, 2) nearest to each point (m, 2), lower index first."""
    delta = points[:, None] - centers  # (m, r, 2)
    distances = delta[..., 0].square() + delta[..., 1].square()  # (m, r)
    return stable_topk(distances, k, largest=False)


def nearest_anchors_per_level(anchors: list[Tensor], boxes: Tensor, topk: int) -> Tensor:
    """Algorithm 1, lines 3 to 6: the anchors near each box.

    Args:
        anchors: L levels, each (Ri, 4).
        boxes: (M, 4).
        topk: Anchors of a level; a smaller level gives all it has.

    Returns:
        Candidates (M, C), C = sum_i min(topk, Ri), as indices into the R anchors: level by level,
        the nearest first.
    """
    points = box_centers(boxes)  # (M, 2)
    candidates = []
    first = 0
    for level_anchors in anchors:
        num_level = len(level_anchors)
        k = min(topk, num_level)
        centers = box_centers(level_anchors)  # (Ri, 2)
        nearest = [
            nearest_anchors(points[rows], centers, k) for rows in box_chunks(len(boxes), num_level)
        ]
        candidates.append(torch.cat(nearest) + first)
        first += num_level
    return torch.cat(candidates, dim=1)


def priority_keys(priorities: Tensor, box_idxs: Tensor) -> Tensor:
    """int64 keys, 0 or more, that sort like float32 priorities; of equal ones the lower box wins.

    Args:
        priorities: (...) float32 of either sign, not NaN.
        box_idxs: Broadcastable to ``priorities``, index of the box that each belongs to.
    """
    bits = (priorities + 0.0).view(torch.int32).long()  # + 0.0: -0.0 has the bits of a negative
    # Negative floats sort against their bit patterns.
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) + 2**31  # 0 to 2^32 - 1
    return (ordered << _INDEX_BITS) | (2**_INDEX_BITS - 1 - box_idxs)


class Contest:
    """Gives every anchor of a batch to the box that bids the highest key."""

    def __init__(self, num_images: int, num_anchors: int, device: torch.device) -> None:
        self._best = torch.full((num_images, num_anchors), _NO_BOX, device=device)  # (N, R)

    def bid(self, positive: Tensor, keys: Tensor, image_idxs: Tensor) -> None:
        """Bids for all anchors: mask and keys (m, R) of the boxes of images ``image_idxs`` (m,)."""
        keys = torch.where(positive, keys, _NO_BOX)
        max_per_image_(self._best, keys, image_idxs)

    def winners(self) -> Tensor:
        """(N, R) index of the box that gets each anchor, or :data:`BACKGROUND`."""
        idxs = 2**_INDEX_BITS - 1 - (self._best & (2**_INDEX_BITS - 1))
        return torch.where(self._best >= 0, idxs, BACKGROUND)


def settle(
    candidates: Tensor,
    positive: Tensor,
    keys: Tensor,
    image_idxs: Tensor,
    num_images: int,
    num_anchors: int,
) -> Tensor:
    """As :class:`Contest`, when few anchors are bid for; touches others only to clear them.

    Args:
        candidates: (M, C) indices into the R anchors, each at most once in a row.
        positive: (M, C) which of them are bid for.
        keys: (M, C) int64, 0 or more, all different for one anchor.
        image_idxs: (M,) image of each box.
        num_images: N.
        num_anchors: R.

    Returns:
        (N, R) index of the box that gets each anchor, or :data:`BACKGROUND`.
    """
    num_slots = num_images * num_anchors
    slots = candidates + (image_idxs * num_anchors)[:, None]  # (M, C) into N x R
    keys = torch.where(positive, keys, _NO_BOX)
    best = torch.full((num_slots,), _NO_BOX, device=keys.device)
    best.scatter_reduce_(0, slots.flatten(), keys.flatten(), "amax")
    has_won = positive & (best[slots] == keys)
    box_idxs = torch.arange(len(keys), device=keys.device)[:, None].expand_as(slots)
    # One slot more, for those that have not won; the rest are written by one box each.
    matched = torch.full((num_slots + 1,), BACKGROUND, device=keys.device)
    matched.scatter_(0, torch.where(has_won, slots, num_slots).flatten(), box_idxs.flatten())
    return matched[:-1].view(num_images, num_anchors)


def max_per_image_(out: Tensor, values: Tensor, image_idxs: Tensor) -> None:
    """Raises ``out`` (N, R) to the values (m, R) of the boxes of images ``image_idxs`` (m,)."""
    out.scatter_reduce_(0, image_idxs[:, None].expand_as(values), values, "amax")
