"""Box coders: what the head regresses, relative to an anchor.

A box coder has ``get_deltas(anchors, boxes)`` and ``apply_deltas(deltas, anchors)``, both on
(R, 4) tensors in pixels, and is its own inverse on valid boxes. Regression from a box is
Detectron2's ``Box2BoxTransform`` with the numbers of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.box_regression import Box2BoxTransform


def box2box_transform(*, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)) -> Box2BoxTransform:
    """The (dx, dy, dw, dh) coder of R-CNN with the weights of ATSS.

    Args:
        weights: Factors of (dx, dy, dw, dh); the defaults are the reciprocals of the standard
            deviations (0.1, 0.1, 0.2, 0.2).

    Returns:
        Detectron2's coder; dw and dh are clamped to log(1000 / 16) when boxes are decoded.
    """
    return Box2BoxTransform(weights=tuple(float(w) for w in weights))
