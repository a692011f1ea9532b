"""Builds the :class:`Scene` of a batch.

Shapes: N images, L levels, Ri anchors of level i, Mn boxes of image n, M = sum(Mn), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .nouns import DecodedPredictions, Scene


def build_scene(
    anchors: Sequence[Boxes | Tensor],
    gt_boxes: Sequence[Boxes | Tensor],
    gt_ignore: Sequence[Tensor] | None = None,
    grid_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    gt_classes: Sequence[Tensor] | None = None,
    predictions: DecodedPredictions | None = None,
    iteration: int | None = None,
) -> Scene:
    """Builds a scene from the boxes of all images, on the device of the anchors.

    Args:
        anchors: L levels, each (Ri, 4) XYXY in pixels.
        gt_boxes: N images, each (Mn, 4) XYXY in pixels.
        gt_ignore: N images, each (Mn,) bool, true for ignore regions.
        grid_sizes: See :class:`Scene`, as for the rest.
        gt_classes: N images, each (Mn,) int64.
        predictions: For rules that need them.
        iteration: Of the training.

    Raises:
        ValueError: Anchors or boxes are not (n, 4), or ``gt_ignore`` does not fit the boxes.
    """
    anchors = [_as_tensor(a) for a in anchors]
    gt_boxes = [_as_tensor(b) for b in gt_boxes]
    if not anchors:
        raise ValueError("a matcher needs at least one level of anchors, got an empty list")
    device = anchors[0].device
    boxes = torch.cat(gt_boxes) if gt_boxes else anchors[0].new_zeros(0, 4)  # (M, 4)
    boxes = boxes.to(device)
    classes = None
    if gt_classes is not None:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        classes = torch.cat([none, *(x.to(device) for x in gt_classes)])
    # The image of each box (M,), made on the host, where the numbers of boxes are known.
    image_idxs = torch.tensor(
        [i for i, b in enumerate(gt_boxes) for _ in range(len(b))], dtype=torch.int64
    ).to(device, non_blocking=True)
    regions = None
    if gt_ignore is not None and gt_boxes:
        is_region = _cat_flags(gt_ignore, gt_boxes).to(device)  # (M,)
        # Boxes without area are neutral: no rule gives them an anchor, and they cover none.
        regions = boxes.masked_fill(~is_region[:, None], 0)
        boxes = boxes.masked_fill(is_region[:, None], 0)
        classes = None if classes is None else classes.masked_fill(is_region, 0)
    return Scene(
        anchors,
        boxes,
        image_idxs,
        len(gt_boxes),
        classes,
        regions,
        grid_sizes,
        predictions,
        iteration,
    )


def scene_of_instances(
    anchors: Sequence[Boxes | Tensor],
    gt_instances: Sequence[Instances],
    grid_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    num_classes: int,
    predictions: DecodedPredictions | None = None,
    iteration: int | None = None,
) -> Scene:
    """Builds the scene of a training batch.

    Args:
        anchors: L levels of anchors.
        gt_instances: N images with ``gt_boxes`` and ``gt_classes``; boxes marked by the optional
            field ``gt_ignore`` (bool) are ignore regions.
        grid_sizes: See :class:`Scene`, as for the rest.
        num_classes: K.
        predictions: For rules that need them.
        iteration: Of the training.

    Raises:
        ValueError: The class of an object lies outside 0..K-1. On a GPU, for which the host does
            not wait, a CUDA assertion fails instead.
    """
    gt_ignore = None
    if any(x.has("gt_ignore") for x in gt_instances):
        gt_ignore = [
            x.gt_ignore if x.has("gt_ignore") else torch.zeros_like(x.gt_classes, dtype=torch.bool)
            for x in gt_instances
        ]
    scene = build_scene(
        anchors,
        [x.gt_boxes for x in gt_instances],
        gt_ignore,
        grid_sizes,
        gt_classes=[x.gt_classes for x in gt_instances],
        predictions=predictions,
        iteration=iteration,
    )
    _check_classes(scene.classes, num_classes)
    return scene


def _check_classes(classes: Tensor, num_classes: int) -> None:
    is_valid = (classes >= 0) & (classes < num_classes)
    if classes.device.type not in ("cpu", "mps") or torch.compiler.is_compiling():
        torch._assert_async(
            is_valid.all(),
            f"gt_classes must be 0 to {num_classes - 1}: set num_classes to the number of classes "
            "of the data set",
        )
    elif not is_valid.all():  # on a CPU, nothing has to wait
        wrong = sorted(set(classes[~is_valid].tolist()))
        raise ValueError(
            f"gt_classes must be 0 to {num_classes - 1}, got {', '.join(map(str, wrong))}: the "
            f"model has num_classes={num_classes}, set it to the number of classes of the data set"
        )


def _as_tensor(boxes: Boxes | Tensor) -> Tensor:
    tensor = boxes.tensor if isinstance(boxes, Boxes) else boxes
    if tensor.dim() != 2 or tensor.shape[1] != 4:
        raise ValueError(f"boxes must have shape (n, 4), got {tuple(tensor.shape)}")
    return tensor.detach().float()


def _cat_flags(gt_ignore: Sequence[Tensor], gt_boxes: Sequence[Tensor]) -> Tensor:
    """Joins the flags (M,) of all images, checked against the numbers of boxes."""
    if len(gt_ignore) != len(gt_boxes):
        raise ValueError(f"gt_ignore has {len(gt_ignore)} images, gt_boxes has {len(gt_boxes)}")
    for i, (flags, boxes) in enumerate(zip(gt_ignore, gt_boxes)):
        if flags.dtype != torch.bool or flags.shape != boxes.shape[:1]:
            raise ValueError(
                f"gt_ignore[{i}] must be bool of shape ({len(boxes)},), one flag for each box of "
                f"the image, got {flags.dtype} of shape {tuple(flags.shape)}"
            )
    return torch.cat(list(gt_ignore))
