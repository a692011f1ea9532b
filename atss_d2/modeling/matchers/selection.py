"""What several rules share: finding anchors near a box, and resolving conflicts between boxes.

A conflict is an anchor that several boxes claim.

Ties are broken by integer keys that are all different, so that the result does not depend on the
device or the order of execution.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), M boxes of the batch, m boxes of a
chunk, C candidates of one box.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..geometry import box_centers

BACKGROUND = -1
IGNORED = -2

# Maximum number of entries of a temporary matrix, (boxes of a chunk, anchors). Boxes are processed
# in chunks, so memory does not grow with their number; on a CPU, chunks fit into its cache.
MAX_CHUNK_ENTRIES = {"cpu": 2**18}
_MAX_CHUNK_ENTRIES_ELSEWHERE = 2**22

_NO_BOX = BACKGROUND  # below every key of priority_keys
_INDEX_BITS = 31


def box_chunks(boxes: Tensor, num_anchors: int) -> Iterator[slice]:
    """Yields slices of boxes (M, 4), at least one, whose (m, num_anchors) matrices are small."""
    max_entries = MAX_CHUNK_ENTRIES.get(boxes.device.type, _MAX_CHUNK_ENTRIES_ELSEWHERE)
    size = max(1, max_entries // max(num_anchors, 1))
    for start in range(0, max(len(boxes), 1), size):
        yield slice(start, start + size)


def stable_topk(values: Tensor, k: int, *, largest: bool) -> Tensor:
    """Returns the indices (m, k) of the k largest or smallest of the values (m, r) of each row.

    Of equal values, the lower index comes first. ``topk`` guarantees no order among equal values,
    so it runs on integer keys: nonnegative floats sort like their bit patterns (-0.0 sorts below
    0), and the index fills the low bits.

    Args:
        values: (m, r) float32, not negative; or the :func:`ordered_bits` of any values.
        k: At most r.
        largest: Whether to find the largest values.
    """
    keys = values.view(torch.int32).long() << 32
    idxs = torch.arange(values.shape[1], device=values.device)
    keys += idxs.flip(0) if largest else idxs
    return keys.topk(k, dim=1, largest=largest).indices


def nearest_anchors(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Returns indices (m, k) of the k centers (r, 2) nearest to points (m, 2); ties by index."""
    delta = points[:, None] - centers  # (m, r, 2)
    distances = delta[..., 0].square() + delta[..., 1].square()  # (m, r)
    return stable_topk(distances, k, largest=False)


def nearest_anchors_per_level(anchors: list[Tensor], boxes: Tensor, topk: int) -> Tensor:
    """Finds the anchors near each box (Algorithm 1, lines 3 to 6).

    Args:
        anchors: L levels, each (Ri, 4).
        boxes: (M, 4).
        topk: Anchors per level; a smaller level contributes all of them.

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
            nearest_anchors(points[rows], centers, k) for rows in box_chunks(boxes, num_level)
        ]
        candidates.append(torch.cat(nearest) + first)
        first += num_level
    return torch.cat(candidates, dim=1)


def ordered_bits(values: Tensor) -> Tensor:
    """Returns int32 (...) that sort like float32 values (...) of either sign, but not NaN."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0.0 has the bits of a negative
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats sort against their bit patterns


def priority_keys(priorities: Tensor, box_idxs: Tensor) -> Tensor:
    """Returns int64 keys >= 0 that sort like float32 priorities; on a tie the lower box wins.

    Args:
        priorities: (...) float32 of either sign, not NaN.
        box_idxs: Index of the box that each priority belongs to, broadcastable to ``priorities``.
    """
    ordered = ordered_bits(priorities).long() + 2**31  # 0 to 2^32 - 1
    return (ordered << _INDEX_BITS) | (2**_INDEX_BITS - 1 - box_idxs)


def positive_priority_keys(priorities: Tensor, box_idxs: Tensor) -> Tensor:
    """Works like :func:`priority_keys` for nonnegative priorities; those of 0 get negative keys."""
    return (priorities.view(torch.int32).long() << _INDEX_BITS) - (1 + box_idxs)


class DenseConflicts:
    """Gives every anchor of a batch to the box that claims it with the highest key."""

    def __init__(self, num_images: int, num_anchors: int, device: torch.device) -> None:
        self._best = torch.full((num_images, num_anchors), _NO_BOX, device=device)  # (N, R)

    def claim(self, keys: Tensor, image_idxs: Tensor, positive: Tensor | None = None) -> None:
        """Claims all anchors, or those of a mask.

        Args:
            keys: (m, R) int64; a negative key claims nothing.
            image_idxs: (m,) images of the boxes.
            positive: (m, R), which of the anchors are claimed.
        """
        if positive is not None:
            keys = torch.where(positive, keys, _NO_BOX)
        max_per_image_(self._best, keys, image_idxs)

    def winners(self) -> Tensor:
        """Returns the index (N, R) of the box that gets each anchor, or :data:`BACKGROUND`."""
        idxs = 2**_INDEX_BITS - 1 - (self._best & (2**_INDEX_BITS - 1))
        return torch.where(self._best >= 0, idxs, BACKGROUND)


def resolve_conflicts(
    candidates: Tensor,
    positive: Tensor,
    keys: Tensor,
    image_idxs: Tensor,
    num_images: int,
    num_anchors: int,
) -> Tensor:
    """Works like :class:`DenseConflicts`, for few claims; touches other anchors only to clear them.

    Args:
        candidates: (M, C) indices into the R anchors, each at most once in a row.
        positive: (M, C) which of them are claimed.
        keys: (M, C) int64, nonnegative, all different for one anchor.
        image_idxs: (M,) image of each box.
        num_images: N.
        num_anchors: R.

    Returns:
        (N, R) index of the box that gets each anchor, or :data:`BACKGROUND`.
    """
    num_slots = num_images * num_anchors
    slots = (candidates + (image_idxs * num_anchors)[:, None]).flatten()  # (M C,) into N x R
    keys = keys.masked_fill(~positive, _NO_BOX).flatten()
    # First stores the highest key that claims an anchor, then replaces it by the box of that key:
    # no two boxes have the same key. The extra slot is for the claims that have not won.
    matched = torch.full((num_slots + 1,), BACKGROUND, device=keys.device)
    matched.scatter_reduce_(0, slots, keys, "amax")
    has_won = (matched.index_select(0, slots) == keys) & positive.flatten()
    box_idxs = torch.arange(len(positive), device=keys.device)[:, None].expand_as(positive)
    matched.scatter_(0, slots.masked_fill(~has_won, num_slots), box_idxs.flatten())
    return matched[:-1].view(num_images, num_anchors)


def max_per_image_(out: Tensor, values: Tensor, image_idxs: Tensor) -> None:
    """Raises ``out`` (N, R) to the values (m, R) of the boxes in the images ``image_idxs`` (m,)."""
    out.scatter_reduce_(0, image_idxs[:, None].expand_as(values), values, "amax")
