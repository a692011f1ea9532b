"""From a matcher's result to what a dense detector is trained for.

Shapes: N images, R anchors of an image, Mn boxes of image n, M = sum(Mn), K classes.
"""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torch import Tensor

from .matchers import IGNORED


def ignore_flags(gt_instances: list[Instances]) -> list[Tensor] | None:
    """``gt_ignore`` (Mn,) bool of N images; None when no image has that field."""
    if not any(x.has("gt_ignore") for x in gt_instances):
        return None
    return [
        x.gt_ignore if x.has("gt_ignore") else torch.zeros_like(x.gt_classes, dtype=torch.bool)
        for x in gt_instances
    ]


def _check_classes(classes: Tensor, gt_ignore: list[Tensor] | None, num_classes: int) -> None:
    """Checks that the classes (M,) of boxes that can be matched are 0..K-1."""
    is_valid = (classes >= 0) & (classes < num_classes)
    if gt_ignore is not None:
        is_valid |= torch.cat(gt_ignore)
    if classes.device.type not in ("cpu", "mps") or torch.compiler.is_compiling():
        torch._assert_async(
            is_valid.all(),
            f"gt_classes must be 0 to {num_classes - 1}: set num_classes to the number of classes "
            "of the data set",
        )
    elif not is_valid.all():  # on a CPU the host waits for nothing
        wrong = sorted(set(classes[~is_valid].tolist()))
        raise ValueError(
            f"gt_classes must be 0 to {num_classes - 1}, got {', '.join(map(str, wrong))}: the "
            f"model has num_classes={num_classes}, set it to the number of classes of the data set"
        )


def labels_from_matches(
    matched_idxs: Tensor, anchors: Tensor, gt_instances: list[Instances], *, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Looks up the class and the box of every anchor.

    Args:
        matched_idxs: (N, R), as :meth:`DenseMatcher.match_batch` returns it.
        anchors: (R, 4) XYXY, pixels.
        gt_instances: N images with ``gt_boxes`` and ``gt_classes``.
        num_classes: K, the label of background.

    Returns:
        gt_labels (N, R) int64: class, K for background, -1 for ignored anchors;
        matched_gt_boxes (N, R, 4): the matched box, for an anchor without one itself; and
        rows (N, R) int64: 1 + the index of the matched box among the M of the batch, 0 for none.

    Raises:
        ValueError: The class of a box that is no ignore region lies outside of 0..K-1. On a GPU,
            for which the host does not wait, an assertion of CUDA's fails instead.
    """
    # Row 0 stands for "no box", so that a batch without boxes needs no branch.
    rows = (matched_idxs + 1).clamp(min=0)  # (N, R)
    background = torch.full((1,), num_classes, dtype=torch.int64, device=anchors.device)
    classes = torch.cat([background] + [x.gt_classes for x in gt_instances])  # (1 + M,)
    _check_classes(classes[1:], ignore_flags(gt_instances), num_classes)
    boxes = torch.cat(
        [anchors.new_zeros(1, 4)] + [x.gt_boxes.tensor.to(anchors) for x in gt_instances]
    )
    gt_labels = torch.where(matched_idxs == IGNORED, -1, classes[rows])  # (N, R)
    matched_gt_boxes = torch.where((rows > 0)[..., None], boxes[rows], anchors)
    return gt_labels, matched_gt_boxes, rows
