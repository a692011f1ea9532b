"""Slow loop versions of the merging of detections, written from the description of the method.

Like ``reference.py``: plain Python, one box at a time, nothing of the package is used. IoUs are
measured in float32, so that those that equal a threshold fall alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference import Box, box_iou

Detection = tuple[float, int, Sequence[float]]  # score, class, box


def _iou(a: Box, b: Box) -> np.float32:
    return box_iou([np.float32(x) for x in a], [np.float32(x) for x in b])


def vote(
    detections: Sequence[Detection],
    *,
    iou_thresh: float = 0.66,
    soft_score_thresh: float | None = None,
) -> list[Detection]:
    """Merges detections class by class, best score first.

    Args:
        detections: Of one image; among equal scores the first is the best.
        iou_thresh: Least IoU with the best of a group.
        soft_score_thresh: The members of a group stay, with score x (1 - IoU) when this reaches
            the threshold. Default: they do not.
    """
    merged: list[Detection] = []
    for k in sorted({k for _, k, _ in detections}):
        left = sorted((d for d in detections if d[1] == k), key=lambda d: -d[0])
        while left:
            best, *others = left
            members, left = [], []
            for other in others:
                reaches = _iou(best[2], other[2]) >= np.float32(iou_thresh)
                (members if reaches else left).append(other)
            if not members:
                merged.append(best)
                continue
            group = [best, *members]
            total = sum(score for score, _, _ in group)
            # Scores of 0 weigh the same.
            weights = [score / total if total else 1 / len(group) for score, _, _ in group]
            mean = [
                sum(w * float(box[i]) for w, (_, _, box) in zip(weights, group, strict=True))
                for i in range(4)
            ]
            merged.append((best[0], k, mean))
            if soft_score_thresh is not None:
                for score, _, box in members:
                    lowered = np.float32(score) * (np.float32(1) - _iou(best[2], box))
                    if lowered >= np.float32(soft_score_thresh):
                        merged.append((float(lowered), k, box))
    return sorted(merged, key=lambda d: -d[0])
