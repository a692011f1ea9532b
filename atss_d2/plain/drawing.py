"""Draws boxes with labels that stay readable with a hundred small objects."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[float, float, float]  # RGB in [0, 1]

_RIM = (0, 0, 0, 110)  # next to a line, so that it is also visible on bright pixels
_BACKGROUND = (0, 0, 0, 190)
# Maximum fraction of a box's area that a label inside it covers.
_MOST_OF_BOX = 0.12
_SMALL_TYPE = 10  # pixels


def class_color(index: int) -> Color:
    """Returns a bright RGB color for a class; neighboring classes differ clearly, 0 is yellow."""
    golden_ratio = 0.618034  # spreads any number of hues evenly
    return colorsys.hsv_to_rgb((0.15 + golden_ratio * index) % 1.0, 0.85, 1.0)


def class_name(index: int, class_names: Sequence[str] | None) -> str:
    """Returns the name of a class, or its number if there are no names."""
    return class_names[index] if class_names else str(index)


def detection_labels(
    classes: Sequence[int], scores: Sequence[float], class_names: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """Returns labels of detections for :func:`draw_boxes`: name and score, or only the score."""
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

    The first label that fits is drawn inside its box, on a dark background in the upper left
    corner. If none fits, one is drawn in small type above or below the box: the first that hides
    neither another box nor another label, or else the last one.

    Args:
        image: An RGB image. It is not changed.
        boxes: (M, 4) XYXY in pixels; they may extend outside the image.
        labels: Labels of each box, the longest first; empty for none.
        colors: Color of each box.
        is_dashed: Whether each box is dashed. Default: none is.
        label_small: Whether boxes without room for a label get one outside.

    Returns:
        A picture of the same size.
    """
    picture = image.copy()
    canvas = ImageDraw.Draw(picture, "RGBA")  # RGBA for translucent drawing
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
    labeler = _Labeler(canvas, picture.size, boxes)
    outside = []
    for i in order:
        size = int(np.clip(sides[i] / 8, _SMALL_TYPE, max(15, longer_side / 80)))
        if labels[i] and not labeler.write_inside(i, labels[i], colors[i], size):
            outside.append(i)
    if label_small:
        for i in outside:
            labeler.write_outside(i, labels[i], colors[i])
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


class _Labeler:
    """Finds places for labels."""

    def __init__(
        self, canvas: ImageDraw.ImageDraw, image_size: tuple[int, int], boxes: np.ndarray
    ) -> None:
        self._canvas = canvas
        self._image_size = np.array(image_size)
        self._boxes = boxes
        self._labels: list[tuple[float, ...]] = []

    def write_inside(self, i: int, labels: tuple[str, ...], color: Color, size: int) -> bool:
        """Writes the first label that fits into box ``i``; returns whether one does."""
        sides = self._boxes[i, 2:] - self._boxes[i, :2]
        for label in labels:
            for font_size in dict.fromkeys((size, _SMALL_TYPE)):
                font = _font(font_size)
                extent = _extent(font, label)
                if extent[0] <= sides[0] and extent.prod() <= _MOST_OF_BOX * sides.prod():
                    # A box may extend outside the picture, but its label must not.
                    x, y = self._boxes[i, :2].clip(0, (self._image_size - extent).clip(min=0))
                    place = (x, y, x + extent[0], y + extent[1])
                    self._canvas.rectangle(place, fill=_BACKGROUND)
                    self._canvas.text((x + 2, y + 1), label, fill=_light(color), font=font)
                    self._labels.append(place)
                    return True
        return False

    def write_outside(self, i: int, labels: tuple[str, ...], color: Color) -> None:
        """Writes a label above or below box ``i``."""
        font = _font(_SMALL_TYPE)
        x0, y0, _, y1 = self._boxes[i]
        # Boxes that enclose this one, such as a tree crown around a nest, are not obstacles.
        others = np.delete(self._boxes, i, axis=0)
        is_around = (others[:, :2] <= (x0, y0)).all(1) & (others[:, 2:] >= self._boxes[i, 2:]).all(
            1
        )
        obstacles = np.concatenate([others[~is_around], np.reshape(self._labels, (-1, 4))])
        places = []
        for label in labels:
            extent = _extent(font, label)
            room = (self._image_size - extent).clip(min=0)
            x = float(np.clip(x0, 0, room[0]))
            for y in (y0 - extent[1], y1 + 1):
                if 0 <= y <= room[1]:
                    place = (x, y, x + extent[0], y + extent[1])
                    places.append((label, place))
                    is_hidden = (obstacles[:, :2] < place[2:]).all(1) & (
                        obstacles[:, 2:] > place[:2]
                    ).all(1)
                    if not is_hidden.any():
                        self._write(label, place, color, font)
                        return
        # The last label, above the box if there is room; at the top inside a box of full height.
        last = [place for label, place in places if label == labels[-1]]
        y = float(np.clip(y0, 0, room[1]))
        inside = (x, y, x + extent[0], y + extent[1])
        self._write(labels[-1], last[0] if last else inside, color, font)

    def _write(
        self, label: str, place: tuple[float, ...], color: Color, font: ImageFont.ImageFont
    ) -> None:
        self._labels.append(place)
        self._canvas.text(
            (place[0] + 1, place[1]),
            label,
            fill=_light(color),
            font=font,
            stroke_width=1,
            stroke_fill=(0, 0, 0, 200),
        )


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _extent(font: ImageFont.ImageFont, text: str) -> np.ndarray:
    """Returns width and height of a label with padding; the height is the same for every text."""
    left, _, right, _ = font.getbbox(text, anchor="la")
    _, _, _, bottom = font.getbbox("Ag", anchor="la")
    return np.array([int(right - left) + 4, int(bottom) + 3])


def _rgb(color: Color) -> tuple[int, int, int]:
    return tuple(round(255 * x) for x in color)


def _light(color: Color) -> tuple[int, int, int]:
    """Returns the color of text on a dark background: halfway to white, so that blue is legible."""
    return _rgb(tuple((1 + x) / 2 for x in color))
