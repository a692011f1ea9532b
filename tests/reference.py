"""Slow loop versions of what the detector computes, written from the paper.

Plain Python, one anchor, one box and one class at a time; nothing of the package is used. They
say what a result *is*; the package says how to get it quickly. Geometry of boxes is measured in
float32, as the detector does, so that ties fall alike; statistics and losses are in float64.

Boxes are sequences (x1, y1, x2, y2) in pixels, continuous coordinates.

Shapes: L levels, R anchors, A anchors per location, M boxes of an image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

Box = Sequence[float]


@lru_cache
def published() -> dict[str, np.ndarray]:
    """Numbers computed by public implementations, see ``assets/README.md``."""
    numbers = {}
    for name in ("reference.npz", "mmdet_head.npz"):
        with np.load(Path(__file__).parent / "assets" / name) as arrays:
            numbers.update(arrays)
    return numbers


@lru_cache
def published_quality() -> dict[str, np.ndarray]:
    """Numbers of mmdetection's GFL, VFNet, PAA, TOOD, DDOD and DyHead, see ``assets/README.md``."""
    with np.load(Path(__file__).parent / "assets" / "quality.npz") as arrays:
        return dict(arrays)


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sides: Sequence[tuple[float, float]] = ((8.0, 8.0),),
    offset: float = 0.5,
) -> list[list[list[float]]]:
    """Anchors of L levels in Detectron2's order: row by row, those of one location adjacent.

    Args:
        shapes: (Hi, Wi) of each level.
        strides: Pixels between neighboring locations of each level.
        sides: (width, height) of the A anchors of a location, in strides.
        offset: Position of the first location, in strides.
    """
    levels = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        anchors = []
        for row in range(height):
            for column in range(width):
                x, y = (column + offset) * stride, (row + offset) * stride
                for w, h in sides:
                    half_w, half_h = w * stride / 2, h * stride / 2
                    anchors.append([x - half_w, y - half_h, x + half_w, y + half_h])
        levels.append(anchors)
    return levels


def as_float32(box: Box) -> list[np.float32]:
    """The numbers of a box as the detector measures them."""
    return [np.float32(value) for value in box]


def box_iou(a: Sequence[np.float32], b: Sequence[np.float32]) -> np.float32:
    """Intersection over union, 0 where there is no union; of float32 numbers, in float32."""
    zero = np.float32(0)
    width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else zero


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    """log(sigmoid(x)) without overflow."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def focal_loss(
    logits: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> float:
    """Sum of -alpha_t (1 - p_t)^gamma log(p_t) ("Focal Loss for Dense Object Detection", Eq. 5).

    Label K is background, -1 is left out, alpha below 0 weighs nothing.
    """
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label == -1:
            continue
        for k, logit in enumerate(row):
            # 1 - sigmoid(x) is sigmoid(-x).
            x = logit if k == label else -logit
            alpha_t = 1.0 if alpha < 0 else (alpha if k == label else 1 - alpha)
            total += -alpha_t * sigmoid(-x) ** gamma * log_sigmoid(x)
    return total


def giou(a: Box, b: Box) -> float:
    """Generalized IoU (arXiv 1902.09630, Algorithm 1) of two boxes of positive area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (hull - union) / hull


def centerness(x: float, y: float, box: Box, inset: float = 0.0) -> float:
    """Centerness (arXiv 1904.01355, Eq. 3) of a point in a box, 0 outside of it."""
    left, top = x - box[0] - inset, y - box[1] - inset
    right, bottom = box[2] - x - inset, box[3] - y - inset
    if min(left, top, right, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def binary_cross_entropy(logit: float, target: float) -> float:
    """-target log(p) - (1 - target) log(1 - p) of p = sigmoid(logit)."""
    return -target * log_sigmoid(logit) - (1 - target) * log_sigmoid(-logit)


def decode(deltas: Sequence[float], anchor: Box) -> list[float]:
    """Box of the (dx, dy, dw, dh) regression with weights (10, 10, 5, 5)."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] / 10 * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] / 10 * height
    width *= math.exp(min(deltas[2] / 5, math.log(1000 / 16)))
    height *= math.exp(min(deltas[3] / 5, math.log(1000 / 16)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def detections(
    levels: Sequence[Sequence[Box]],
    logits: Sequence[Sequence[Sequence[float]]],
    deltas: Sequence[Sequence[Sequence[float]]],
    centerness_logits: Sequence[Sequence[float]],
    image_size: tuple[int, int],
    *,
    apply_deltas: Callable[[Sequence[float], Box], Sequence[float]] = decode,
    score_thresh: float = 0.05,
    topk_candidates: int = 1000,
    nms_thresh: float = 0.6,
    max_detections: int = 100,
    score_type: str = "sqrt",
    rank_by: str = "score",
) -> list[tuple[float, int, list[float]]]:
    """Detections (score, class, box) of one image, best first, for scores without ties."""
    height, width = image_size
    candidates = []
    for level in zip(levels, logits, deltas, centerness_logits, strict=True):
        of_level = []
        for anchor, row, delta, centerness_logit in zip(*level, strict=True):
            for k, logit in enumerate(row):
                if sigmoid(logit) > score_thresh:
                    score = sigmoid(logit) * sigmoid(centerness_logit)
                    score = math.sqrt(score) if score_type == "sqrt" else score
                    rank = score if rank_by == "score" else sigmoid(logit)
                    of_level.append((rank, (score, k, apply_deltas(delta, anchor))))
        of_level.sort(key=lambda c: -c[0])
        candidates += [candidate for _, candidate in of_level[:topk_candidates]]
    candidates = [
        (
            score,
            k,
            [
                min(max(float(box[0]), 0.0), float(width)),
                min(max(float(box[1]), 0.0), float(height)),
                min(max(float(box[2]), 0.0), float(width)),
                min(max(float(box[3]), 0.0), float(height)),
            ],
        )
        for score, k, box in candidates
    ]
    candidates = [c for c in candidates if c[2][2] > c[2][0] and c[2][3] > c[2][1]]
    candidates.sort(key=lambda c: -c[0])
    kept: list[tuple[float, int, list[float]]] = []
    for score, k, box in candidates:
        rivals = [other for _, other_k, other in kept if other_k == k]
        if all(
            float(box_iou(as_float32(box), as_float32(other))) <= nms_thresh for other in rivals
        ):
            kept.append((score, k, box))
    return kept[:max_detections]
