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
        logits: L x (N, Ri, K) class logits; of the fused score if a head fuses several.
        regression: L x (N, Ri, D), as the box coder takes them.
        quality: L x (N, Ri) logits of a second score, such as centerness; None if the head has
            none.
        first_regression: L x (N, Ri, D) of the boxes that a head refines to ``regression``, for
            their loss in training; None if the head predicts boxes once.
    """

    logits: list[Tensor]
    regression: list[Tensor]
    quality: list[Tensor] | None = None
    first_regression: list[Tensor] | None = None


class DecodedPredictions(NamedTuple):
    """The predictions as rules see them: detached, in float32.

    Attributes:
        logits: (N, R, K) class logits.
        boxes: (N, R, 4) XYXY, pixels; not clipped to the image.
        quality: (N, R) logits, or None.
    """

    logits: Tensor
    boxes: Tensor
    quality: Tensor | None = None


class Scene(NamedTuple):
    """What a rule of sample selection may use: the anchors and boxes of a batch.

    Attributes:
        anchors: L x (Ri, 4) float32 XYXY, pixels, shared by all images.
        boxes: (M, 4) float32 XYXY, pixels, of all images in order. Boxes without area must receive
            no positives; ignore regions are passed as such boxes.
        image_idxs: (M,) int64 image of each box, ascending.
        num_images: N.
        classes: (M,) int64 in 0..K-1, 0 for ignore regions; None if classes are unknown.
        regions: (M, 4) ignore regions; the rows of objects have no area. None without regions.
        grid_sizes: (Hi, Wi) of the levels if their anchors lie on grids; None if that is unknown.
        predictions: Only for rules with ``needs_predictions``.
        iteration: Iteration of the training; None outside training.
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
    """The result of a rule of sample selection.

    Attributes:
        matched_idxs: (N, R) int64: index into the M boxes, -1 for background, -2 for ignored.
        soft: (N, R) float32 target quality of a positive, 0 for all other anchors; None for a rule
            with hard labels only.
        stats: 0-dim tensors to log as ``atss/<name>``.
        box_matched_idxs: Like ``matched_idxs``, for the losses of boxes and their quality, of a
            rule that selects their samples separately; None: they have the same samples.
    """

    matched_idxs: Tensor
    soft: Tensor | None = None
    stats: Mapping[str, Tensor] = MappingProxyType({})
    box_matched_idxs: Tensor | None = None


class Targets(NamedTuple):
    """Training targets of every anchor: an :class:`Assignment`, with classes and boxes looked up.

    Attributes:
        anchors: (R, 4) XYXY, pixels.
        labels: (N, R) int64: class, K for background, -1 for ignored anchors.
        boxes: (N, R, 4) the matched box; for an anchor without one, the anchor.
        soft: (N, R), see :class:`Assignment`.
        box_labels: Like ``labels``, for the losses of boxes and their quality, if a rule selects
            their samples separately; then ``boxes`` are those of these samples.
    """

    anchors: Tensor
    labels: Tensor
    boxes: Tensor
    soft: Tensor | None = None
    box_labels: Tensor | None = None

    @property
    def labels_of_boxes(self) -> Tensor:
        """(N, R) labels for the losses of boxes: ``box_labels``, or else ``labels``."""
        return self.labels if self.box_labels is None else self.box_labels
