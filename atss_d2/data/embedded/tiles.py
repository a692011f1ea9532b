"""Cuts a large photograph with boxes into tiles.

A window or region is (x0, y0, x1, y1) in whole pixels of the photograph, excluding x1 and y1; boxes
are (M, 4) float64 x1 y1 x2 y2 in Detectron2's continuous coordinates.
"""

import itertools
import math

import numpy as np

from ...plain.tiles import Window, check_sizes, cover_overlapping


def split_evenly(start: int, stop: int, max_size: int) -> list[tuple[int, int]]:
    """Cuts [start, stop) into the fewest parts of at most ``max_size``, equal up to one pixel.

    >>> split_evenly(0, 1249, 640)
    [(0, 624), (624, 1249)]
    """
    check_sizes(start, stop, max_size)
    num = math.ceil((stop - start) / max_size)
    edges = [start + (stop - start) * i // num for i in range(num + 1)]
    return list(itertools.pairwise(edges))


def evaluation_windows(region: Window, max_size: int) -> list[Window]:
    """Returns windows that cover the region without overlap, row by row."""
    x0, y0, x1, y1 = region
    rows, columns = split_evenly(y0, y1, max_size), split_evenly(x0, x1, max_size)
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def training_windows(region: Window, size: int, overlap: int) -> list[Window]:
    """Returns overlapping windows of ``size`` pixels that cover the region, row by row."""
    x0, y0, x1, y1 = region
    rows = cover_overlapping(y0, y1, size, overlap)
    columns = cover_overlapping(x0, x1, size, overlap)
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def clip_to_window(boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Moves boxes into a window's coordinates and clips them.

    Args:
        boxes: (M, 4) in the photograph, of positive area.
        window: The tile.

    Returns:
        Boxes (M, 4) inside the window, in its coordinates (with zero area if a box is outside), and
        the visible fraction of each box's area (M,), in [0, 1].
    """
    x0, y0, x1, y1 = window
    low, high = np.array([x0, y0, x0, y0]), np.array([x1, y1, x1, y1])
    clipped = np.clip(boxes, low, high)  # (M, 4)
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # (M,)
    visible = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])  # (M,)
    return clipped - low, visible / whole
