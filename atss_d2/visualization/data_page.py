"""Draws a page about a data set: images with boxes and class names, object sizes, classes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .detections import class_color

logger = logging.getLogger(__name__)

_WIDTH, _MARGIN, _GAP = 14.0, 0.35, 0.08  # inches
_DPI = 110
_ROW_HEIGHT = 2.7  # inches, maximum height of a row of images
_MAX_ASPECT = 3.0  # wider or taller images are padded with bars
_MAX_BARS = 25
_INK, _FAINT = "#222222", "#888888"


@dataclass(frozen=True)
class LabeledImage:
    """An image of the page.

    Args:
        path: Path of the file.
        boxes: (M, 4) x y w h in pixels.
        classes: (M,) class of each box, from 0.
        is_crowd: (M,) bool, whether the box is drawn dashed.
    """

    path: Path
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def draw_data_page(
    output_png: str | os.PathLike,
    images: Sequence[LabeledImage],
    *,
    title: str,
    class_names: Sequence[str],
    sizes: dict[str, np.ndarray],
    class_counts: dict[str, np.ndarray],
    resize_factor: float = 1.0,
    anchor_sides: Sequence[float] = (),
) -> Path:
    """Draws the page.

    Args:
        output_png: The picture; its folder is created.
        images: Images to show in rows, in this order; unreadable ones are left out with a warning.
        title: Line at the top.
        class_names: K names.
        sizes: Square roots of the objects' areas in pixels of the images, by part (train, val).
        class_counts: (K,) numbers of objects, by part.
        resize_factor: Factor from pixels of the images to pixels of the model's input.
        anchor_sides: Sides of the anchors in pixels of the model's input, to mark among the sizes.

    Returns:
        Path of the picture.
    """
    panels = []
    for image in images:
        try:
            panels.append((_thumbnail(read_image(str(image.path), format="RGB")), image))
        except Exception as error:  # codecs raise any type; the page is useful without the image
            logger.warning(f"'{image.path}' is not on the page: {error}")
    rows = _arrange([thumbnail.aspect for thumbnail, _ in panels])
    num_bars = min(len(class_names), _MAX_BARS)
    charts_height = max(3.4, 0.19 * num_bars + 1.3)
    images_height = sum(height + _GAP for _, height in rows)
    height = 2 * _MARGIN + 0.55 + images_height + charts_height + 0.3
    # Not pyplot, which keeps figures and the backend in global state.
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")

    def add_axes(x: float, y: float, w: float, h: float) -> Axes:
        """Adds axes at a position in inches from the upper left corner."""
        return figure.add_axes((x / _WIDTH, 1 - (y + h) / height, w / _WIDTH, h / height))

    figure.text(
        _MARGIN / _WIDTH, 1 - (_MARGIN + 0.1) / height, title, size=15, weight="bold", va="center"
    ).set_color(_INK)
    y = _MARGIN + 0.45
    for members, row_height in rows:
        x = _MARGIN
        for i in members:
            thumbnail, image = panels[i]
            width = thumbnail.aspect * row_height
            _draw_image(add_axes(x, y, width, row_height), thumbnail, image, class_names)
            x += width + _GAP
        y += row_height + _GAP
    y += 0.45
    bottom = charts_height - 0.65
    names_width = _names_width(class_names)
    half = (_WIDTH - 2 * _MARGIN) / 2
    _plot_sizes(
        add_axes(_MARGIN + 0.55, y, half - 1.0, min(bottom, 4.5)),
        sizes,
        resize_factor,
        anchor_sides,
    )
    bars_height = min(bottom, 0.45 * num_bars + 0.15)
    bars = add_axes(_MARGIN + half + names_width, y, half - names_width - 0.5, bars_height)
    _plot_classes(bars, class_names, class_counts)
    output_png = Path(output_png)
    output_png.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Characters missing from Matplotlib's font are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(output_png)
    return output_png


@dataclass(frozen=True)
class _Thumbnail:
    """Pixels (h, w, 3) of an image at ``scale``; ``aspect`` is that of its panel on the page."""

    pixels: np.ndarray
    scale: float
    aspect: float


def _thumbnail(pixels: np.ndarray) -> _Thumbnail:
    height, width = pixels.shape[:2]
    # Slightly more pixels than the page has for it.
    scale = min(1.3 * _ROW_HEIGHT * _DPI / min(height, width), 1.0)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    return _Thumbnail(small, scale, float(np.clip(width / height, 1 / _MAX_ASPECT, _MAX_ASPECT)))


def _arrange(aspects: Sequence[float]) -> list[tuple[list[int], float]]:
    """Returns rows (members, height in inches) of images of equal height that fill the width."""
    total = _WIDTH - 2 * _MARGIN
    rows, members = [], []
    for i in range(len(aspects)):
        members.append(i)
        height = (total - _GAP * (len(members) - 1)) / sum(aspects[j] for j in members)
        if height <= _ROW_HEIGHT:
            rows.append((members, height))
            members = []
    # The last row has the maximum height, and is left out if it would be mostly empty.
    if members and (not rows or sum(aspects[j] for j in members) * _ROW_HEIGHT > 0.6 * total):
        rows.append((members, _ROW_HEIGHT))
    return rows


def _draw_image(
    axes: Axes, thumbnail: _Thumbnail, image: LabeledImage, class_names: Sequence[str]
) -> None:
    height, width = thumbnail.pixels.shape[:2]
    axes.set_axis_off()
    axes.set_facecolor("#eeeeee")
    axes.imshow(thumbnail.pixels, interpolation="lanczos", aspect="equal")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    points_per_pixel = 72 * axes.get_position().height * axes.figure.get_figheight() / height
    boxes = image.boxes * thumbnail.scale
    num_labels = 0
    for i in np.argsort(-boxes[:, 2] * boxes[:, 3]):  # small ones on top
        x, y, w, h = boxes[i]
        color = class_color(int(image.classes[i]))
        side = max(w * h, 1.0) ** 0.5 * points_per_pixel  # points on the page
        line = float(np.clip(side / 25, 0.7, 1.6))
        rim = [patheffects.withStroke(linewidth=line + 1.0, foreground=(0, 0, 0, 0.55))]
        style = "--" if image.is_crowd[i] else "-"
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), w, h, fill=False, ec=color, lw=line, ls=style, path_effects=rim
            )
        )
        # A letter is about 0.55 of the font size wide: draw only names that do not cover neighbors.
        name = _shorten(class_names[image.classes[i]], 18)
        if (
            num_labels < 15
            and len(class_names) > 1
            and 1.7 * w * points_per_pixel > 3.6 * len(name)
        ):
            num_labels += 1
            axes.text(
                float(np.clip(x, 0, max(width - 4 * len(name) / points_per_pixel, 0))),
                max(y, 7.5 / points_per_pixel),
                name,
                size=6,
                color="black" if _luminance(color) > 0.45 else "white",
                va="bottom",
                ha="left",
                clip_on=True,
                bbox={"fc": color, "ec": "none", "pad": 0.8, "alpha": 0.85},
            )


def _luminance(color: tuple[float, float, float]) -> float:
    return float(np.dot(color, (0.299, 0.587, 0.114)))


def _plot_sizes(
    axes: Axes,
    sizes: dict[str, np.ndarray],
    resize_factor: float,
    anchor_sides: Sequence[float],
) -> None:
    everything = np.concatenate([*sizes.values(), [8.0, 96.0]]).clip(min=1)
    low, high = 0.8 * everything.min(), 1.25 * everything.max()
    edges = np.geomspace(low, high, 40)
    for (part, values), color in zip(sizes.items(), ("#4477aa", "#ee6677")):
        weights = np.full(len(values), 100 / max(len(values), 1))
        axes.hist(
            values.clip(min=1),
            edges,
            weights=weights,
            color=color,
            alpha=0.75 if part == "train" else 1.0,
            histtype="stepfilled" if part == "train" else "step",
            linewidth=1.6,
            label=f"{part}: {len(values)} objects",
        )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for edge in (32, 96):
        axes.axvline(edge, color=_FAINT, lw=0.8, ls=":")
    top = axes.get_ylim()[1] * 1.28
    axes.set_ylim(0, top)
    for a, b, text in ((low, 32, "small"), (32, 96, "medium"), (96, high, "large")):
        if min(b, high) > max(a, low) * 1.3:
            middle = (max(a, low) * min(b, high)) ** 0.5
            axes.text(middle, 0.985 * top, text, color=_FAINT, ha="center", va="top", size=8)
    _label_pixels(axes.xaxis, low, high)
    axes.set_xlabel("side of objects, sqrt(w x h), pixels of the image")
    axes.set_ylabel("% of objects")
    axes.set_title(_size_title(resize_factor), size=11, loc="left", color=_INK, pad=8)
    shown = [side / resize_factor for side in anchor_sides]
    shown = [(side, x) for side, x in zip(anchor_sides, shown) if low < x < high]
    for side, x in shown:
        axes.annotate(
            f"{side:g}",
            (x, 0),
            (x, 0.045 * top),
            ha="center",
            size=7.5,
            weight="bold",
            arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1},
            bbox={"fc": "white", "ec": "black", "lw": 0.6, "pad": 1.2},
        )
    if shown:
        axes.plot([], [], color="black", marker="v", ls="", ms=5, label="anchors of the model, px")
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93), framealpha=0.9)
    _tidy(axes)


def _size_title(resize_factor: float) -> str:
    if abs(resize_factor - 1) < 0.05:
        return "Sizes of objects"
    return f"Sizes of objects (the model sees them {resize_factor:.2g} times as large)"


def _label_pixels(axis, low: float, high: float) -> None:
    ticks = [2.0**k for k in range(0, 14) if low <= 2.0**k <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _plot_classes(
    axes: Axes, class_names: Sequence[str], class_counts: dict[str, np.ndarray]
) -> None:
    train, *others = class_counts.values()
    order = np.argsort(-train, kind="stable")[:_MAX_BARS]
    positions = np.arange(len(order))
    widths = np.maximum(train[order], 0)
    axes.barh(positions, widths, 0.72, color=[class_color(int(k)) for k in order], ec=_INK, lw=0.4)
    for other in others:
        axes.plot(other[order], positions, ls="", marker="|", ms=9, mew=2.2, color="black")
    largest = max([*train, *(n for other in others for n in other), 1])
    for position, k in zip(positions, order):
        text = " / ".join(str(int(counts[k])) for counts in class_counts.values())
        end = max([train[k], *(other[k] for other in others)])
        axes.text(end + 0.015 * largest, position, f" {text}", va="center", size=7, color=_INK)
    axes.set_yticks(positions, [_shorten(class_names[k], 30) for k in order], size=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * largest)
    title = f"{len(class_names)} classes" if len(class_names) > 1 else "1 class"
    title += f": objects in {' / '.join(class_counts)} (bar / mark)"
    axes.set_title(title, size=11, loc="left", color=_INK, pad=8)
    hidden = np.argsort(-train, kind="stable")[_MAX_BARS:]
    if len(hidden):
        axes.set_xlabel(
            f"and {len(hidden)} classes with {int(train[hidden].min())} to "
            f"{int(train[hidden].max())} objects in train",
        )
    _tidy(axes)


def _names_width(class_names: Sequence[str]) -> float:
    """Returns the width in inches of the class names beside their bars."""
    return 0.25 + 0.072 * max(len(_shorten(name, 30)) for name in class_names)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, length=3)


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
