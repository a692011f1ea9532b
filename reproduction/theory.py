"""What the losses are before a network has learned, from their definitions.

Nothing here was measured. P positives and R K class logits of an image, prior 0.01: the head's
biases make every class score 0.01 at the start ("Focal Loss for Dense Object Detection", Sec. 4.1).
"""

from __future__ import annotations

import math

PRIOR = 0.01
# loss_box_reg is 2 x (1 - GIoU), a weighted mean over positives, and GIoU is in (-1, 1].
LARGEST_GIOU_LOSS = 2.0
# Binary cross entropy of a centerness of 0.5 everywhere, for any target.
BLIND_CENTERNESS = math.log(2)


def focal_loss_of_constant(
    score: float, logits_per_positive: float, alpha: float = 0.25, gamma: float = 2.0
) -> float:
    """Returns ``loss_cls`` of a head that gives every class of every anchor the same score.

    Args:
        score: In (0, 1).
        logits_per_positive: R K / P.
        alpha: Weight of positives.
        gamma: Exponent.
    """
    positive = alpha * (1 - score) ** gamma * -math.log(score)
    negative = (1 - alpha) * score**gamma * -math.log1p(-score)
    return positive + (logits_per_positive - 1) * negative


def blind_focal_loss(
    logits_per_positive: float, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[float, float]:
    """Returns the least ``loss_cls`` of a head that does not look at the image, and its score.

    A network must come below it: one that cannot has features of no use, for example because no
    pretrained weights were loaded.
    """
    scores = [10 ** (-x / 100) for x in range(2, 500)]
    best = min(
        scores, key=lambda score: focal_loss_of_constant(score, logits_per_positive, alpha, gamma)
    )
    return focal_loss_of_constant(best, logits_per_positive, alpha, gamma), best
