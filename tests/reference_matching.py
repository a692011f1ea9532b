"""Slow loop versions of the sample-selection rules, written from the papers.

One image, one box and one anchor at a time, as in :mod:`tests.reference`; geometry is measured in
float32, so that ties fall alike, statistics in float64. Every ``*_match`` takes L levels of
anchors and the boxes of an image, and gives for each of the R anchors the index of its box, -1 for
background or -2 for ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.reference import Box, as_float32, box_iou

Levels = Sequence[Sequence[Box]]


def _center(box: Sequence[np.float32]) -> tuple[np.float32, np.float32]:
    x1, y1, x2, y2 = box
    return (x1 + x2) / np.float32(2), (y1 + y2) / np.float32(2)


def _distances(anchor: Sequence[np.float32], box: Sequence[np.float32]) -> list[np.float32]:
    """From the center of an anchor to the left, top, right and bottom side of a box."""
    x, y = _center(anchor)
    return [x - box[0], y - box[1], box[2] - x, box[3] - y]


def _area(box: Sequence[np.float32]) -> np.float32:
    return (box[2] - box[0]) * (box[3] - box[1])


def _has_area(box: Sequence[np.float32]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _overlap(a: Sequence[np.float32], b: Sequence[np.float32], metric: str) -> np.float32:
    """IoU, generalized IoU (arXiv 1902.09630) or distance IoU (arXiv 1911.08287)."""
    iou = box_iou(a, b)
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    if metric == "giou":
        hull = width * height
        zero = np.float32(0)
        shared_width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
        shared_height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
        union = _area(a) + _area(b) - shared_width * shared_height
        return iou - (hull - union) / hull if hull > 0 else iou
    if metric == "diou":
        (ax, ay), (bx, by) = _center(a), _center(b)
        diagonal = width * width + height * height
        distance = (ax - bx) * (ax - bx) + (ay - by) * (ay - by)
        return iou - distance / diagonal if diagonal > 0 else iou
    return iou


def _nearest(anchors: Sequence[Box], box: Box, k: int) -> list[int]:
    """Indices of the k anchors of a level with the nearest centers; at a tie the lower first."""
    x, y = _center(as_float32(box))
    keys = []
    for index, anchor in enumerate(anchors):
        anchor_x, anchor_y = _center(as_float32(anchor))
        dx, dy = x - anchor_x, y - anchor_y
        keys.append((dx * dx + dy * dy, index))
    keys.sort()
    return [index for _, index in keys[:k]]


def atss_candidates(levels: Levels, box: Box, *, topk: int, num_anchors: int = 1) -> list[int]:
    """Algorithm 1, lines 3 to 6: indices into the R anchors, level by level, nearest first."""
    candidates, first = [], 0
    for anchors in levels:
        candidates += [first + index for index in _nearest(anchors, box, topk * num_anchors)]
        first += len(anchors)
    return candidates


def _threshold(values: Sequence[float], std_factor: float, unbiased: bool) -> float:
    """Mean plus deviations, that of a single value is 0. Exact for equal values."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - unbiased)
    return mean + std_factor * math.sqrt(variance)


def atss_threshold(levels: Levels, box: Box, *, topk: int = 9, num_anchors: int = 1) -> float:
    """Algorithm 1, lines 7 to 10."""
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    candidates = atss_candidates(levels, box, topk=topk, num_anchors=num_anchors)
    return _threshold([float(box_iou(anchors[i], as_float32(box))) for i in candidates], 1, True)


def atss_match(
    levels: Levels,
    boxes: Sequence[Box],
    *,
    topk: int = 9,
    num_anchors: int = 1,
    metric: str = "iou",
    std_factor: float = 1.0,
    unbiased_std: bool = True,
    center_epsilon: float | None = 0.01,
    inset: float = 0.0,
    min_positives: int = 0,
) -> list[int]:
    """Algorithm 1: the candidates near a box whose overlap stands out, with their center in it.

    An anchor wanted by several boxes goes to the one of highest overlap; of equal ones to the
    lower index. ``min_positives`` also makes the candidates of highest overlap positive; among
    equal ones those that come first in ``atss_candidates``.
    """
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    best = [-math.inf] * len(anchors)
    matched = [-1] * len(anchors)
    for g, box in enumerate(map(as_float32, boxes)):
        if not _has_area(box):
            continue
        candidates = atss_candidates(levels, box, topk=topk, num_anchors=num_anchors)
        overlaps = [_overlap(anchors[i], box, metric) for i in candidates]
        threshold = _threshold([float(value) for value in overlaps], std_factor, unbiased_std)

        positive = set()
        for i, overlap in zip(candidates, overlaps, strict=True):
            if center_epsilon is None:
                inside = box_iou(anchors[i], box) > 0
            else:
                margin = min(_distances(anchors[i], box)) - np.float32(inset)
                inside = margin > np.float32(center_epsilon)
            if inside and float(overlap) >= threshold:
                positive.add(i)
        order = sorted(range(len(candidates)), key=lambda c: (-overlaps[c], c))
        positive.update(candidates[c] for c in order[:min_positives])

        for i, overlap in zip(candidates, overlaps, strict=True):
            if i in positive and overlap > best[i]:
                best[i], matched[i] = overlap, g
    return matched


def iou_match(
    levels: Levels,
    boxes: Sequence[Box],
    *,
    thresholds: tuple[float, float] = (0.4, 0.5),
    allow_low_quality_matches: bool = True,
    low_quality_override: bool = False,
    center_in_gt: bool = False,
    center_epsilon: float = 0.01,
    inset: float = 0.0,
) -> list[int]:
    """RetinaNet's rule (arXiv 1708.02002, Sec. 4.1)."""
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    boxes = [as_float32(box) for box in boxes]
    ious = [[box_iou(anchor, box) for box in boxes] for anchor in anchors]
    best_of_box = [max(row[g] for row in ious) for g in range(len(boxes))]
    low, high = (np.float32(threshold) for threshold in thresholds)
    matched = []
    for anchor, row in zip(anchors, ious, strict=True):
        if not boxes:
            matched.append(-1)
            continue
        g = max(range(len(boxes)), key=lambda g: (row[g], -g))
        best_of = [
            h
            for h, (iou, best) in enumerate(zip(row, best_of_box, strict=True))
            if allow_low_quality_matches and iou > 0 and iou == best
        ]
        if low_quality_override and best_of:
            g = best_of[-1]
        if row[g] >= high or best_of:
            margin = min(_distances(anchor, boxes[g])) - np.float32(inset)
            inside = margin > np.float32(center_epsilon)
            matched.append(g if inside or not center_in_gt else -2)
        else:
            matched.append(-2 if row[g] >= low else -1)
    return matched


def fcos_match(
    levels: Levels,
    boxes: Sequence[Box],
    *,
    strides: Sequence[int],
    range_factor: float = 8.0,
    center_epsilon: float = 0.01,
    inset: float = 0.0,
    radius: float | None = None,
    topk: int | None = None,
) -> list[int]:
    """FCOS's rule (arXiv 1904.01355, Sec. 3.2), plain or with one of two kinds of center sampling.

    "If a location satisfies max(l, t, r, b) > m_i or max(l, t, r, b) < m_(i-1), it is set as a
    negative sample": both ends belong to a range. An anchor wanted by several boxes goes to the
    smallest; of equal areas to the lower index.
    """
    matched = []
    for level, anchors in enumerate(levels):
        m_before = range_factor * strides[level - 1] if level else -math.inf
        m = range_factor * strides[level] if level + 1 < len(levels) else math.inf
        near = [_nearest(anchors, box, topk or len(anchors)) for box in boxes]
        for index, anchor in enumerate(map(as_float32, anchors)):
            rivals = []
            for g, box in enumerate(map(as_float32, boxes)):
                distances = [d - np.float32(inset) for d in _distances(anchor, box)]
                margin = min(distances)
                if radius is not None:
                    (x, y), (box_x, box_y) = _center(anchor), _center(box)
                    reach = np.float32(radius * strides[level])
                    margin = min(margin, reach - abs(x - box_x), reach - abs(y - box_y))
                inside = index in near[g] and margin > np.float32(center_epsilon)
                is_negative = max(distances) > m or max(distances) < m_before
                if inside and not is_negative:
                    rivals.append((_area(box), g))
            matched.append(min(rivals)[1] if rivals else -1)
    return matched


def topk_match(
    levels: Levels,
    boxes: Sequence[Box],
    *,
    topk: int = 9,
    center_epsilon: float | None = 0.01,
    inset: float = 0.0,
) -> list[int]:
    """The rule TOPK of the authors' release: the best anchors of a box, with their center in it.

    The best have the highest IoU - distance / largest distance / 1000, where the largest distance
    is that of the image: from the center of any anchor to the center of any box. At a tie the lower
    index. An anchor wanted by several boxes goes to the one of highest IoU; of equal ones to the
    lower index.
    """
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    boxes = [as_float32(box) for box in boxes]
    distances = []
    for box in boxes:
        x, y = _center(box)
        offsets = [(_center(anchor)[0] - x, _center(anchor)[1] - y) for anchor in anchors]
        distances.append([np.sqrt(dx * dx + dy * dy) for dx, dy in offsets])
    objects = [g for g in range(len(boxes)) if _has_area(boxes[g])]
    largest = max([max(distances[g]) for g in objects], default=np.float32(0))
    best = [np.float32(0)] * len(anchors)
    matched = [-1] * len(anchors)
    for g in objects:
        ious = [box_iou(anchor, boxes[g]) for anchor in anchors]
        values = [
            iou - (d / largest / np.float32(1000) if largest > 0 else 0)
            for iou, d in zip(ious, distances[g], strict=True)
        ]
        order = sorted(range(len(anchors)), key=lambda i: (-values[i], i))
        for i in order[:topk]:
            margin = min(_distances(anchors[i], boxes[g])) - np.float32(inset)
            is_inside = center_epsilon is None or margin > np.float32(center_epsilon)
            if is_inside and ious[i] > best[i]:
                best[i], matched[i] = ious[i], g
    return matched


def match_with_regions(
    match: Callable[..., list[int]],
    levels: Levels,
    boxes: Sequence[Box],
    is_region: Sequence[bool],
    *,
    ignore_ioa_thresh: float | None = None,
    **options,
) -> list[int]:
    """A rule on the objects among the boxes; then background that a region covers is ignored."""
    objects = [g for g in range(len(boxes)) if not is_region[g]]
    matched = match(levels, [boxes[g] for g in objects], **options)
    matched = [objects[m] if m >= 0 else m for m in matched]
    if ignore_ioa_thresh is None:
        return matched
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    for i, anchor in enumerate(anchors):
        for g, region in enumerate(map(as_float32, boxes)):
            width = min(anchor[2], region[2]) - max(anchor[0], region[0])
            height = min(anchor[3], region[3]) - max(anchor[1], region[1])
            covered = max(width, np.float32(0)) * max(height, np.float32(0))
            limit = np.float32(ignore_ioa_thresh) * _area(anchor)
            if is_region[g] and matched[i] == -1 and covered > limit:
                matched[i] = -2
    return matched
