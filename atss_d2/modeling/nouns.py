"""What passes between head, sample selection and losses.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), M boxes of the batch, K classes, D
values that the box coder takes for an anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    """What the head predicts for every anchor.

    Attributes:
        logits: L x (N, Ri, K) class logits: of the score, also where a head fuses several.
        regression: L x (N, Ri, D), as the box coder takes them.
        quality: L x (N, Ri) logits of a second score, such as centerness; None for a head without.
    """

    logits: list[Tensor]
    regression: list[Tensor]
    quality: list[Tensor] | None = None


class DecodedPredictions(NamedTuple):
    """What a rule may see of the predictions: detached, in float32.

    Attributes:
        logits: (N, R, K) class logits.
        boxes: (N, R, 4) XYXY, pixels; not clipped to the image.
        quality: (N, R) logits, or None.
    """

    logits: Tensor
    boxes: Tensor
    quality: Tensor | None = None


class Scene(NamedTuple):
    """What a rule of sample selection may look at: the anchors and boxes of a batch.

    Attributes:
        anchors: L x (Ri, 4) float32 XYXY, pixels, shared by all images.
        boxes: (M, 4) float32 XYXY, pixels, of all images, one after the other. Boxes without area
            must receive no positives; ignore regions are passed as such boxes.
        image_idxs: (M,) int64 image of each box, ascending.
        num_images: N.
        classes: (M,) int64 in 0..K-1, 0 for ignore regions; None where classes are unknown.
        regions: (M, 4) ignore regions; rows that are objects have no area. None without regions.
        grid_sizes: (Hi, Wi) of the levels if their anchors lie on grids; None if that is unknown.
        predictions: Only for rules with ``needs_predictions``.
        iteration: Of the training; None outside one.
    """

    anchors: list[Tensor]
    boxes: Tensor
    image_idxs: Tensor
    num_images: int
    classes: Tensor | None = None
    regions: Tensor | None = None
    grid_sizes: Sequence[tuple[int, int]] | None = None
    predictions: DecodedPredictions | None = None
    iteration: int | None = None


class Assignment(NamedTuple):
    """What a rule of sample selection says.

    Attributes:
        matched_idxs: (N, R) int64: index into the M boxes, -1 for background, -2 for ignored.
        soft: (N, R) float32 quality that a positive is trained for, 0 for all other anchors; None
            for a rule with hard labels only.
        stats: 0-dim tensors to be logged as ``atss/<name>``.
    """

    matched_idxs: Tensor
    soft: Tensor | None = None
    stats: Mapping[str, Tensor] = MappingProxyType({})


class Targets(NamedTuple):
    """What every anchor is trained for: an :class:`Assignment`, looked up.

    Attributes:
        anchors: (R, 4) XYXY, pixels.
        labels: (N, R) int64: class, K for background, -1 for ignored anchors.
        boxes: (N, R, 4) the matched box; for an anchor without one, the anchor.
        soft: (N, R), see :class:`Assignment`.
    """

    anchors: Tensor
    labels: Tensor
    boxes: Tensor
    soft: Tensor | None = None
