"""Boxes on a picture, drawn by Detectron2's Visualizer, readable with a hundred small objects."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

Color = tuple[float, float, float]  # RGB in [0, 1]


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    score_thresh: float = 0.0,
    colors: Sequence[Color] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Draws the boxes of detections, with class and score where a box has room for them.

    Args:
        image: (H, W, 3) uint8, BGR. It stays as it is.
        instances: With ``pred_boxes`` in pixels of ``image``, ``pred_classes`` and ``scores``.
        class_names: By class; without them a label shows the number of the class. A single class
            is not named in the labels.
        score_thresh: Detections below this score are left out.
        colors: RGB in [0, 1] of each of ``instances``; by default one colour for each class.
        scale: Of the result, relative to ``image``.

    Returns:
        (scale H, scale W, 3) uint8, BGR.

    Raises:
        ValueError: ``image`` is something else, or ``colors`` has another length.
    """
    instances = instances.to("cpu")
    if colors is None:
        colors = [class_color(c) for c in instances.pred_classes.tolist()]
    elif len(colors) != len(instances):
        raise ValueError(f"colors must have {len(instances)} elements, got {len(colors)}")
    is_kept = instances.scores >= score_thresh
    instances = instances[is_kept]
    labels = []
    for c, score in zip(instances.pred_classes.tolist(), instances.scores.tolist()):
        name, percent = _class_name(c, class_names), f"{100 * score:.0f}%"
        labels.append((f"{name} {percent}", name) if name else (percent,))
    return _draw_boxes(
        image,
        instances.pred_boxes.tensor.detach(),
        labels=labels,
        colors=[color for color, kept in zip(colors, is_kept.tolist()) if kept],
        is_dashed=[False] * len(instances),
        scale=scale,
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
        image: (H, W, 3) uint8, BGR. It stays as it is.
        annotations: ``"annotations"`` of a dict of Detectron2's ``DatasetCatalog``.
        class_names: As in :func:`draw_detections`.
        colors: RGB in [0, 1] of each of ``annotations``; by default one for each class.
        scale: Of the result, relative to ``image``.

    Returns:
        (scale H, scale W, 3) uint8, BGR.

    Raises:
        ValueError: ``image`` is something else, or ``colors`` has another length.
    """
    boxes, gt_classes, is_crowd = parse_annotations(annotations)
    classes = gt_classes.tolist()
    if colors is None:
        colors = [class_color(c) for c in classes]
    elif len(colors) != len(annotations):
        raise ValueError(f"colors must have {len(annotations)} elements, got {len(colors)}")
    labels = []
    for c, crowd in zip(classes, is_crowd.tolist()):
        name = _class_name(c, class_names)
        labels.append((f"{name} crowd".strip(), "crowd") if crowd else (name,) if name else ())
    return _draw_boxes(
        image,
        boxes.tensor,
        labels=labels,
        colors=list(colors),
        is_dashed=is_crowd.tolist(),
        scale=scale,
    )


def parse_annotations(annotations: Sequence[dict]) -> tuple[Boxes, Tensor, Tensor]:
    """Boxes, classes (M,) and ``iscrowd`` (M,) bool of a dict of ``DatasetCatalog``."""
    boxes = [
        BoxMode.convert(list(x["bbox"]), BoxMode(x["bbox_mode"]), BoxMode.XYXY_ABS)
        for x in annotations
    ]
    return (
        Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor([x["category_id"] for x in annotations], dtype=torch.int64),
        torch.tensor([bool(x.get("iscrowd", 0)) for x in annotations], dtype=torch.bool),
    )


def class_color(index: int) -> Color:
    """A bright RGB colour for a class; neighbours differ clearly. The first is yellow."""
    golden_ratio = 0.618034  # spreads any number of hues evenly
    return colorsys.hsv_to_rgb((0.15 + golden_ratio * index) % 1.0, 0.85, 1.0)


def _class_name(index: int, class_names: Sequence[str] | None) -> str:
    if not class_names:
        return str(index)
    return "" if len(class_names) == 1 else class_names[index]


def _draw_boxes(
    image: np.ndarray,
    boxes: Tensor,
    *,
    labels: list[tuple[str, ...]],
    colors: list[Color],
    is_dashed: list[bool],
    scale: float,
) -> np.ndarray:
    """Draws boxes (M, 4). Of a box's labels, the longest comes first, the first that fits is used.

    Visualizer's own ``overlay_instances`` draws lines of 3.5 pixels and labels every box, which
    hides objects of 20 pixels; so its primitives are used instead.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=method)
    visualizer = Visualizer(image[:, :, ::-1])
    pixels_per_point = visualizer.output.dpi / 72

    boxes = boxes * scale
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in areas.argsort(descending=True).tolist():  # so that small boxes stay on top
        x0, y0, x1, y1 = boxes[i].tolist()
        side = max(areas[i].item(), 0.0) ** 0.5
        linewidth = float(np.clip(side / 60, 1.2, 2.5))
        outline = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
        # A dark rim, so that a line is seen on bright ground too.
        visualizer.draw_line(*outline, color=(0, 0, 0, 0.4), linewidth=linewidth + 1)
        visualizer.draw_line(
            *outline,
            color=colors[i],
            linestyle="--" if is_dashed[i] else "-",
            linewidth=linewidth,
        )
        font_size = float(np.clip(side / 12, 7.0, 11.0))  # points
        for label in labels[i]:
            label_height = 1.4 * font_size * pixels_per_point
            label_width = 0.62 * font_size * pixels_per_point * len(label)
            if label_width <= x1 - x0 and label_width * label_height <= 0.12 * areas[i]:
                # A box may reach out of the picture, its label not.
                x = float(np.clip(x0, 1, max(width - label_width, 1)))
                y = float(np.clip(y0, 2, max(height - label_height, 2)))
                visualizer.draw_text(
                    label,
                    (x, y),
                    color=colors[i],
                    font_size=font_size,
                    horizontal_alignment="left",
                )
                break
    return np.ascontiguousarray(visualizer.get_output().get_image()[:, :, ::-1])
