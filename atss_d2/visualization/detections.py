"""Draws Detectron2's detections and ground truth on an image."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import Tensor

from ..plain.drawing import Color, class_color, class_name, detection_labels, draw_boxes


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    score_thresh: float = 0.0,
    colors: Sequence[Color] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws the boxes of detections, with class and score, or only the score on small boxes.

    Args:
        image: (H, W, 3) uint8, BGR. It is not changed.
        instances: Detections with ``pred_boxes`` in pixels of ``image``, ``pred_classes`` and
            ``scores``.
        class_names: Names by class; without them, labels show the class number.
        score_thresh: Detections below this score are left out.
        colors: RGB in [0, 1] of each of ``instances``. Default: one color per class.
        scale: Scale of the result relative to ``image``.

    Returns:
        (scale H, scale W, 3) uint8, BGR.

    Raises:
        ValueError: ``image`` has another shape or type, or ``colors`` has the wrong length.
    """
    instances = instances.to("cpu")
    if colors is None:
        colors = [class_color(c) for c in instances.pred_classes.tolist()]
    elif len(colors) != len(instances):
        raise ValueError(f"colors must have {len(instances)} elements, got {len(colors)}")
    is_kept = instances.scores >= score_thresh
    instances = instances[is_kept]
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return _draw_boxes(
        image,
        instances.pred_boxes.tensor.detach(),
        labels=detection_labels(classes, scores, class_names),
        colors=[color for color, kept in zip(colors, is_kept.tolist()) if kept],
        is_dashed=[False] * len(instances),
        scale=scale,
        label_small=True,
    )


def draw_ground_truth(
    image: np.ndarray,
    annotations: Sequence[dict],
    *,
    class_names: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws the boxes of a data set; crowd regions are dashed.

    Args:
        image: (H, W, 3) uint8, BGR. It is not changed.
        annotations: ``"annotations"`` of a dict from Detectron2's ``DatasetCatalog``.
        class_names: As in :func:`draw_detections`.
        colors: RGB in [0, 1] of each of ``annotations``. Default: one color per class.
        scale: Scale of the result relative to ``image``.

    Returns:
        (scale H, scale W, 3) uint8, BGR.

    Raises:
        ValueError: ``image`` has another shape or type, or ``colors`` has the wrong length.
    """
    boxes, gt_classes, is_crowd = parse_annotations(annotations)
    classes = gt_classes.tolist()
    if colors is None:
        colors = [class_color(c) for c in classes]
    elif len(colors) != len(annotations):
        raise ValueError(f"colors must have {len(annotations)} elements, got {len(colors)}")
    labels = []
    for c, crowd in zip(classes, is_crowd.tolist()):
        name = class_name(c, class_names)
        labels.append((f"{name} crowd", "crowd") if crowd else (name,))
    return _draw_boxes(
        image,
        boxes.tensor,
        labels=labels,
        colors=list(colors),
        is_dashed=is_crowd.tolist(),
        scale=scale,
        label_small=False,
    )


def parse_annotations(annotations: Sequence[dict]) -> tuple[Boxes, Tensor, Tensor]:
    """Returns boxes, classes (M,) and ``iscrowd`` (M,) bool of Detectron2's annotations."""
    boxes = [
        BoxMode.convert(list(x["bbox"]), BoxMode(x["bbox_mode"]), BoxMode.XYXY_ABS)
        for x in annotations
    ]
    return (
        Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor([x["category_id"] for x in annotations], dtype=torch.int64),
        torch.tensor([bool(x.get("iscrowd", 0)) for x in annotations], dtype=torch.bool),
    )


def _draw_boxes(
    image: np.ndarray,
    boxes: Tensor,
    *,
    labels: list[tuple[str, ...]],
    colors: list[Color],
    is_dashed: list[bool],
    scale: float,
    label_small: bool,
) -> np.ndarray:
    """Applies :func:`~atss_d2.plain.drawing.draw_boxes` to a rescaled BGR array."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=method)
    picture = draw_boxes(
        Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])),
        (boxes * scale).numpy(),
        labels=labels,
        colors=colors,
        is_dashed=is_dashed,
        label_small=label_small,
    )
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
