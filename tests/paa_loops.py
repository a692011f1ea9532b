"""Slow loop versions of PAA's sample selection and score voting, written from arXiv 2007.08103.

The mixture is what scikit-learn's documentation of ``GaussianMixture`` says: expectation
maximization, stopped when the mean log-density changes by less than 1e-3, or after 100 iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference import Box, as_float32, box_iou, focal_loss, giou


def two_gaussians(values: Sequence[float]) -> tuple[list[bool], list[float]]:
    """Whether the low component is the likelier one of each value, and its log-density."""
    means, variances, weights = [min(values), max(values)], [1.0, 1.0], [0.5, 0.5]

    def log_probs(x):
        return [
            math.log(weights[k])
            - (math.log(2 * math.pi * variances[k]) + (x - means[k]) ** 2 / variances[k]) / 2
            for k in range(2)
        ]

    def log_density(x):
        a, b = log_probs(x)
        return max(a, b) + math.log1p(math.exp(-abs(a - b)))

    before = -math.inf
    for _ in range(100):
        mean_log_density = math.fsum(map(log_density, values)) / len(values)
        shares = [[math.exp(a - log_density(x)) for a in log_probs(x)] for x in values]
        totals = [math.fsum(share[k] for share in shares) + 10 * 2**-52 for k in range(2)]
        for k in range(2):
            means[k] = math.fsum(s[k] * x for s, x in zip(shares, values)) / totals[k]
            squares = math.fsum(s[k] * (x - means[k]) ** 2 for s, x in zip(shares, values))
            variances[k] = squares / totals[k] + 1e-6
            weights[k] = totals[k] / sum(totals)
        if abs(mean_log_density - before) < 1e-3:
            break
        before = mean_log_density
    is_low = [low >= high for low, high in map(log_probs, values)]
    return is_low, [log_density(x) for x in values]


def cost(
    logits: Sequence[float], box: Box, label: int, gt_box: Box, giou_weight: float = 1.0
) -> float:
    """Loss of a prediction as a positive for a box: focal loss of all classes and GIoU loss."""
    return focal_loss([logits], [label]) + giou_weight * (1 - giou(box, gt_box))


def select(
    level_sizes: Sequence[int],
    matched: Sequence[int],
    costs: Sequence[float],
    *,
    topk: int = 9,
    keep_undivided: bool = True,
) -> list[int]:
    """What remains of the boxes (R,) that anchors were matched to, -1 for none, by their costs."""
    selected = [-1] * len(matched)
    for g in sorted({g for g in matched if g >= 0}):
        candidates, first = [], 0
        for size in level_sizes:
            level = [i for i in range(first, first + size) if matched[i] == g]
            candidates += sorted(level, key=lambda i: (costs[i], i))[:topk]
            first += size
        candidates.sort(key=lambda i: (costs[i], i))
        positives = candidates if keep_undivided else []
        if len(candidates) > 1:
            is_low, densities = two_gaussians([costs[i] for i in candidates])
            low = [j for j in range(len(candidates)) if is_low[j]]
            if low:
                best = max(low, key=lambda j: (densities[j], -j))
                positives = [candidates[j] for j in low if j <= best]
        for i in positives:
            selected[i] = g
    return selected


def vote(
    box: Box, label: int, voters: Sequence[tuple[Box, float, int]], sigma: float = 0.025
) -> list[float]:
    """Mean of the boxes (box, score, class) of a class that overlap a box, by score and IoU."""
    sums, total = [0.0] * 4, 0.0
    for other, score, other_label in voters:
        iou = float(box_iou(as_float32(box), as_float32(other)))
        if other_label == label and iou > 0.01:
            weight = score * math.exp(-((1 - iou) ** 2) / sigma)
            total += weight
            sums = [s + weight * x for s, x in zip(sums, other)]
    return [s / total for s in sums] if total > 0 else list(box)
