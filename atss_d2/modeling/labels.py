"""Turns the assignment of a rule into training targets.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), M boxes of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .matchers import IGNORED
from .nouns import Assignment, Scene, Targets


def look_up(
    assignment: Assignment, scene: Scene, *, num_classes: int, anchors: Tensor | None = None
) -> Targets:
    """Looks up the class and the box of every anchor.

    Args:
        assignment: What a rule returns for ``scene``.
        scene: The scene, with ``classes``.
        num_classes: K, the label of background.
        anchors: (R, 4) anchors of the targets. Default: those of the scene.
    """
    anchors = torch.cat(scene.anchors) if anchors is None else anchors
    # Row 0 stands for "no box", so that a batch without boxes needs no branch.
    background = torch.full((1,), num_classes, dtype=torch.int64, device=anchors.device)
    classes = torch.cat((background, scene.classes))  # (1 + M,)
    boxes = torch.cat((anchors.new_zeros(1, 4), scene.boxes.to(anchors)))
    labels = _labels(assignment.matched_idxs, classes)
    box_idxs, box_labels = assignment.matched_idxs, None
    if assignment.box_matched_idxs is not None:
        box_idxs = assignment.box_matched_idxs
        box_labels = _labels(box_idxs, classes)
    rows = _rows(box_idxs)  # (N, R)
    return Targets(
        anchors,
        labels,
        torch.where((rows > 0)[..., None], boxes[rows], anchors),
        assignment.soft,
        box_labels,
    )


def _labels(matched_idxs: Tensor, classes: Tensor) -> Tensor:
    """Returns the labels (N, R) of matched boxes (N, R), from the classes (1 + M,) of all boxes."""
    return torch.where(matched_idxs == IGNORED, -1, classes[_rows(matched_idxs)])


def _rows(matched_idxs: Tensor) -> Tensor:
    """Returns 1 + the index of the matched box among the M of the batch, 0 for none."""
    return (matched_idxs + 1).clamp(min=0)


def label_stats(
    assignment: Assignment, scene: Scene, level_names: Sequence[str]
) -> dict[str, Tensor]:
    """Returns means per image, 0-dim: positives, positives per level, objects without a positive.

    Args:
        assignment: What a rule returns for ``scene``.
        scene: The scene of N images.
        level_names: Names of the L levels.
    """
    rows = _rows(assignment.matched_idxs)  # (N, R)
    num_images = len(rows)
    is_positive = (rows > 0).split([len(a) for a in scene.anchors], dim=1)
    per_level = torch.stack([x.sum() for x in is_positive]) / num_images  # (L,)
    is_unused = torch.ones(1 + len(scene.boxes), dtype=torch.bool, device=rows.device)
    is_unused[:1].zero_()  # `[0] = False` would make the host wait for a GPU
    if scene.regions is not None:
        is_unused[1:] = (scene.regions == 0).all(dim=1)
    is_unused.scatter_(0, rows.flatten(), False)
    return {
        "num_positives": per_level.sum(),
        **{f"num_positives_{name}": value for name, value in zip(level_names, per_level)},
        "gt_without_positive": is_unused.sum() / num_images,
    }
