"""Boxes with labels on a picture, readable with a hundred small objects."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[float, float, float]  # RGB in [0, 1]

_RIM = (0, 0, 0, 110)  # beside a line, so that it is seen on bright ground too
_BACKGROUND = (0, 0, 0, 190)
# Of a label within its box: at most this part of the box's area.
_MOST_OF_BOX = 0.12


def class_color(index: int) -> Color:
    """A bright RGB color for a class; neighbors differ clearly. The first is yellow."""
    golden_ratio = 0.618034  # spreads any number of hues evenly
    return colorsys.hsv_to_rgb((0.15 + golden_ratio * index) % 1.0, 0.85, 1.0)


def class_name(index: int, class_names: Sequence[str] | None) -> str:
    """The name of a class, or its number where there are no names."""
    return class_names[index] if class_names else str(index)


def detection_labels(
    classes: Sequence[int], scores: Sequence[float], class_names: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """Labels of detections for :func:`draw_boxes`: name and score, or the score alone."""
    return [
        (f"{class_name(c, class_names)} {score:.0%}", f"{score:.0%}")
        for c, score in zip(classes, scores)
    ]


def draw_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    *,
    labels: Sequence[tuple[str, ...]],
    colors: Sequence[Color],
    is_dashed: Sequence[bool] | None = None,
    label_small: bool = True,
) -> Image.Image:
    """Draws boxes, small ones on top of large ones, and then their labels.

    Of a box's labels the first that fits stands inside of it, on dark ground at its upper left
    corner. Where none fits, the last one stands in small type above the box, or below a box at the
    upper border of the picture.

    Args:
        image: RGB. It stays as it is.
        boxes: (M, 4) XYXY in pixels; they may reach out of the image.
        labels: Of each box, the longest first; empty for none.
        colors: Of each box.
        is_dashed: Of each box; default: none is.
        label_small: Whether boxes without room for a label get one outside.

    Returns:
        A picture of the same size.
    """
    picture = image.copy()
    canvas = ImageDraw.Draw(picture, "RGBA")  # RGBA: what is drawn may be translucent
    longer_side = max(image.size)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) ** 0.5  # (M,)
    order = np.argsort(-sides, kind="stable").tolist()
    for i in order:
        width = int(np.clip(sides[i] / 30, 1, 2 + longer_side // 1000))
        _draw_outline(
            canvas,
            tuple(boxes[i].round().astype(int).tolist()),
            _rgb(colors[i]),
            width,
            is_dashed is not None and is_dashed[i],
        )
    for i in order:
        if labels[i]:
            size = float(np.clip(sides[i] / 8, 10, max(15, longer_side / 80)))
            _draw_label(
                canvas, picture.size, boxes[i].tolist(), labels[i], colors[i], size, label_small
            )
    return picture


def _draw_outline(
    canvas: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    color: tuple[int, int, int],
    width: int,
    is_dashed: bool,
) -> None:
    x0, y0, x1, y1 = box
    x1, y1 = max(x0, x1), max(y0, y1)
    canvas.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_RIM)
    if not is_dashed:
        canvas.rectangle((x0, y0, x1, y1), outline=color, width=width)
        return
    dash, gap = 4 + 2 * width, 3 + width
    for start in range(x0, x1 + 1, dash + gap):
        end = min(start + dash, x1)
        canvas.rectangle((start, y0, end, y0 + width - 1), fill=color)
        canvas.rectangle((start, y1 - width + 1, end, y1), fill=color)
    for start in range(y0, y1 + 1, dash + gap):
        end = min(start + dash, y1)
        canvas.rectangle((x0, start, x0 + width - 1, end), fill=color)
        canvas.rectangle((x1 - width + 1, start, x1, end), fill=color)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    image_size: tuple[int, int],
    box: list[float],
    labels: tuple[str, ...],
    color: Color,
    size: float,
    label_small: bool,
) -> None:
    x0, y0, x1, y1 = box
    font = ImageFont.load_default(size)
    for label in labels:
        width, height = _extent(font, label)
        if width <= x1 - x0 and width * height <= _MOST_OF_BOX * (x1 - x0) * (y1 - y0):
            # A box may reach out of the picture, its label not.
            x = float(np.clip(x0, 0, max(image_size[0] - width, 0)))
            y = float(np.clip(y0, 0, max(image_size[1] - height, 0)))
            canvas.rectangle((x, y, x + width, y + height), fill=_BACKGROUND)
            _write(canvas, (x + 2, y + 1), label, _light(color), font)
            return
    if label_small:
        label = labels[-1]
        font = ImageFont.load_default(min(size, 10.0))
        width, height = _extent(font, label)
        y = y0 - height if y0 - height >= 0 else y1 + 1  # above, or below
        x = float(np.clip(x0, 0, max(image_size[0] - width, 0)))
        y = float(np.clip(y, 0, max(image_size[1] - height, 0)))
        canvas.text(
            (x + 1, y),
            label,
            fill=_light(color),
            font=font,
            anchor="la",
            stroke_width=1,
            stroke_fill=(0, 0, 0, 200),
        )


def _write(canvas, xy, text, color, font) -> None:
    canvas.text(xy, text, fill=color, font=font, anchor="la")


def _extent(font: ImageFont.ImageFont, text: str) -> tuple[int, int]:
    """Width and height of a label with its padding; the same height for every text."""
    left, _, right, _ = font.getbbox(text, anchor="la")
    _, _, _, bottom = font.getbbox("Ag", anchor="la")
    return int(right - left) + 4, int(bottom) + 3


def _rgb(color: Color) -> tuple[int, int, int]:
    return tuple(round(255 * x) for x in color)


def _light(color: Color) -> tuple[int, int, int]:
    """The color of text on dark ground: halfway to white, so that blue can be read as well."""
    return _rgb(tuple((1 + x) / 2 for x in color))
