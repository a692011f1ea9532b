"""Slow loop versions of the rules that see predictions, written from the papers.

One image, one box and one anchor at a time, as in :mod:`tests.reference_matching`. Geometry is
measured in float32, so that ties fall alike; costs are computed in float64 and compared in float32.
Every function takes L levels of anchors, the boxes and classes of an image, and for each of the R
anchors the class logits and the predicted box; it gives the index of the box of each, -1 for none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.reference import Box, as_float32, box_iou, sigmoid

Levels = Sequence[Sequence[Box]]
Logits = Sequence[Sequence[float]]


def _center(box: Sequence[np.float32]) -> tuple[np.float32, np.float32]:
    return (box[0] + box[2]) / np.float32(2), (box[1] + box[3]) / np.float32(2)


def _margin(anchor: Sequence[np.float32], box: Sequence[np.float32]) -> np.float32:
    """How far inside a box the center of an anchor is."""
    x, y = _center(anchor)
    return min(x - box[0], y - box[1], box[2] - x, box[3] - y)


def _has_area(box: Sequence[np.float32]) -> bool:
    return bool(box[2] > box[0] and box[3] > box[1])


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def task_aligned_match(
    levels: Levels,
    boxes: Sequence[Box],
    classes: Sequence[int],
    logits: Logits,
    predicted: Sequence[Box],
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> tuple[list[int], list[float]]:
    """TOOD, Sec. 3.3: the topk anchors of highest t = p^alpha u^beta, if inside; and t'."""
    anchors = [as_float32(anchor) for level in levels for anchor in level]
    claims: dict[int, list[tuple[np.float32, int, float]]] = {}
    for g, (box, k) in enumerate(zip(map(as_float32, boxes), classes, strict=True)):
        ious = [box_iou(as_float32(p), box) for p in predicted]
        scores = [sigmoid(row[k]) for row in logits]
        values = [p**alpha * float(u) ** beta for p, u in zip(scores, ious, strict=True)]
        for i in sorted(range(len(anchors)), key=lambda i: (-values[i], i))[:topk]:
            is_inside = _margin(anchors[i], box) > np.float32(0.01)
            if _has_area(box) and values[i] > 0 and is_inside:
                claims.setdefault(i, []).append((ious[i], -g, values[i]))
    matched, soft = [-1] * len(anchors), [0.0] * len(anchors)
    of_box: dict[int, list[tuple[int, np.float32, float]]] = {}
    for i, rivals in claims.items():
        iou, minus_g, value = max(rivals)
        matched[i] = -minus_g
        of_box.setdefault(-minus_g, []).append((i, iou, value))
    for positives in of_box.values():
        best_iou = max(float(iou) for _, iou, _ in positives)
        best_value = max(value for _, _, value in positives)
        for i, _, value in positives:
            soft[i] = value / (best_value + 1e-7) * best_iou
    return matched, soft


def _dynamic_k(
    ious: list[list[np.float32]], keys: list[list[tuple]], is_candidate: list[bool], topk: int
) -> list[int]:
    """The k cheapest candidates of each box; of boxes that want the same one, the cheapest of all.

    Args:
        ious: For each box, of every anchor.
        keys: For each box, of every anchor; the lowest is the cheapest. None of boxes without area.
        is_candidate: For every anchor.
        topk: How many IoUs are summed up to k.
    """
    wanted: dict[int, list[int]] = {}
    for g, row in enumerate(keys):
        if row is None:
            continue
        of_box = [i for i, is_one in enumerate(is_candidate) if is_one]
        best = sorted((float(ious[g][i]) for i in of_box), reverse=True)[:topk]
        k = max(1, int(math.fsum(best)))
        for i in sorted(of_box, key=lambda i: (row[i], i))[:k]:
            wanted.setdefault(i, []).append(g)
    matched = [-1] * len(is_candidate)
    for i, rivals in wanted.items():
        if len(rivals) > 1:
            rivals = [g for g, row in enumerate(keys) if row is not None]
        matched[i] = min(rivals, key=lambda g: (keys[g][i], g))
    return matched


def sim_ota_match(
    levels: Levels,
    boxes: Sequence[Box],
    classes: Sequence[int],
    logits: Logits,
    predicted: Sequence[Box],
    *,
    strides: Sequence[int],
    topk: int = 10,
    center_radius: float = 1.5,
    inside_box: bool = False,
    iou_weight: float = 3.0,
) -> list[int]:
    """YOLOX, Sec. 2.1: BCE - iou_weight ln(u), anchors near the center before all others."""
    anchors = [(as_float32(a), s) for level, s in zip(levels, strides, strict=True) for a in level]
    ious, keys = [], []
    is_candidate = [False] * len(anchors)
    for box, k in zip(map(as_float32, boxes), classes, strict=True):
        ious.append([box_iou(as_float32(p), box) for p in predicted])
        if not _has_area(box):
            keys.append(None)
            continue
        (x, y), row = _center(box), []
        for i, (anchor, stride) in enumerate(anchors):
            reach = np.float32(center_radius * stride)
            is_near = _margin(anchor, (x - reach, y - reach, x + reach, y + reach)) > 0
            is_inside = _margin(anchor, box) > 0
            is_candidate[i] |= bool(is_near or (inside_box and is_inside))
            bce = math.fsum(
                _softplus(-value) if j == k else _softplus(value)
                for j, value in enumerate(logits[i])
            )
            cost = np.float32(bce - iou_weight * math.log(float(ious[-1][i]) + 1e-8))
            row.append((not (is_near and (is_inside or not inside_box)), cost))
        keys.append(row)
    return _dynamic_k(ious, keys, is_candidate, topk)


def soft_label_match(
    levels: Levels,
    boxes: Sequence[Box],
    classes: Sequence[int],
    logits: Logits,
    predicted: Sequence[Box],
    *,
    strides: Sequence[int],
    topk: int = 13,
    center_radius: float = 3.0,
    iou_weight: float = 3.0,
) -> list[int]:
    """RTMDet, Sec. 3.3: BCE |y - p|^2 - iou_weight ln(u) + 10^(distance - center_radius)."""
    anchors = [(as_float32(a), s) for level, s in zip(levels, strides, strict=True) for a in level]
    ious, keys = [], []
    is_candidate = [False] * len(anchors)
    for box, k in zip(map(as_float32, boxes), classes, strict=True):
        ious.append([box_iou(as_float32(p), box) for p in predicted])
        if not _has_area(box):
            keys.append(None)
            continue
        row = []
        for i, (anchor, stride) in enumerate(anchors):
            u = float(ious[-1][i])
            is_candidate[i] |= bool(_margin(anchor, box) > 0)
            cost = 0.0
            for j, value in enumerate(logits[i]):
                target = u if j == k else 0.0
                bce = _softplus(value) - value * target
                cost += bce * (target - sigmoid(value)) ** 2
            (x, y), (box_x, box_y) = _center(anchor), _center(box)
            distance = math.hypot(float(x - box_x), float(y - box_y)) / stride
            cost += -iou_weight * math.log(u + 1e-7) + 10 ** (distance - center_radius)
            row.append((np.float32(cost),))
        keys.append(row)
    return _dynamic_k(ious, keys, is_candidate, topk)


LOOPS: dict[str, Callable] = {
    "tal": task_aligned_match,
    "simota": sim_ota_match,
    "dsla": soft_label_match,
}
