"""Detections in one image as plain arrays, and non-maximum suppression.

Shapes: D detections.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """D detections in an image.

    Args:
        boxes: (D, 4) XYXY in pixels of the image.
        scores: (D,) in [0, 1].
        classes: (D,) int, 0..K-1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def select(self, keep: np.ndarray) -> Detections:
        """Returns the detections of a mask (D,), or of indices in their order."""
        return Detections(*(x[keep] for x in self))

    def best_first(self) -> Detections:
        """Returns the detections sorted by score."""
        return self.select(np.argsort(-self.scores, kind="stable"))


def concatenate(parts: list[Detections]) -> Detections:
    """Concatenates the detections of one or more parts, in the order of the parts."""
    return Detections(*(np.concatenate(x) for x in zip(*parts)))


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, thresh: float) -> np.ndarray:
    """Returns indices (D,) of boxes that overlap no better box of their class, best first.

    Args:
        boxes: (T, 4) XYXY.
        scores: (T,).
        classes: (T,).
        thresh: IoU above which the box with the lower score is removed.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(
            boxes[best, :2], boxes[order, :2]
        )
        overlaps = sides.clip(min=0).prod(axis=1)
        # Written as a product to avoid division by zero areas.
        is_double = overlaps > thresh * (areas[best] + areas[order] - overlaps)
        order = order[~(is_double & (classes[order] == classes[best]))]
    return np.array(keep, dtype=np.int64)
