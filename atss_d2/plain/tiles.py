"""Detects objects in tiles of a large photograph: places the tiles and merges their boxes.

A window is (x0, y0, x1, y1) in whole pixels of the photograph, excluding x1 and y1.

Shapes: D detections.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from .detections import Detections, concatenate, nms

Window = tuple[int, int, int, int]
NMS = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]

TILE_SIZE = 640
TILE_OVERLAP = 0.25
# A box that ends within this fraction of the tile size from a border may be cut by it.
_MARGIN = 0.01
# Fraction of a cut box's area that a larger box of its class must cover to replace it.
_COVERED = 0.6


def cover_overlapping(start: int, stop: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Covers [start, stop) with the fewest spans of ``size`` whose neighbors share >= ``overlap``.

    The spans are spread evenly; an interval shorter than ``size`` is one span.

    >>> cover_overlapping(0, 1000, 640, 128)
    [(0, 640), (360, 1000)]

    Raises:
        ValueError: The interval is empty, or ``size`` or ``overlap`` is invalid.
    """
    check_sizes(start, stop, size)
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be in [0, size = {size}), got {overlap}")
    length = stop - start
    if length <= size:
        return [(start, stop)]
    num = math.ceil((length - overlap) / (size - overlap))
    offsets = [start + (length - size) * i // (num - 1) for i in range(num)]
    return [(offset, offset + size) for offset in offsets]


def check_sizes(start: int, stop: int, size: int) -> None:
    """Checks an interval and a tile size.

    Raises:
        ValueError: The interval [start, stop) is empty, or ``size`` is not positive.
    """
    if stop <= start:
        raise ValueError(f"the interval [{start}, {stop}) is empty")
    if size < 1:
        raise ValueError(f"tile size must be >= 1 pixel, got {size}")


class Tiling:
    """Overlapping tiles of a photograph, and the merging of their detections.

    Every object up to ``overlap`` pixels wide and high is complete in at least one tile. Boxes of
    larger objects come from the overview, the whole photograph scaled down to the size of a tile.

    Attributes:
        windows: The tiles, row by row, all of the same size.
        overlap: Minimum number of pixels that neighboring tiles share.
        overview_size: (width, height) of the overview, whose longer side is that of a tile; None if
            the photograph is a single tile.
    """

    def __init__(
        self, width: int, height: int, *, size: int = TILE_SIZE, overlap: float = TILE_OVERLAP
    ) -> None:
        """
        Args:
            width: Width of the photograph, pixels.
            height: Height of the photograph, pixels.
            size: Side of a tile, in pixels of the photograph; limited by the photograph's sides.
            overlap: Minimum fraction of ``size`` that neighboring tiles share, in [0, 0.9].

        Raises:
            ValueError: ``size`` or ``overlap`` is invalid.
        """
        check_tile_options(size, overlap)
        self.overlap = int(size * overlap)
        self._columns = cover_overlapping(0, width, size, self.overlap)
        self._rows = cover_overlapping(0, height, size, self.overlap)
        self._image_size = width, height
        self._margin = max(2.0, _MARGIN * size)
        self.windows: list[Window] = [
            (x0, y0, x1, y1) for (y0, y1), (x0, x1) in itertools.product(self._rows, self._columns)
        ]
        self.overview_size: tuple[int, int] | None = None
        if len(self.windows) > 1:
            scale = size / max(width, height)
            self.overview_size = max(1, round(width * scale)), max(1, round(height * scale))

    def detect(
        self,
        image: np.ndarray,
        detect: Callable[[list[np.ndarray]], list[Detections]],
        *,
        iou_thresh: float,
        score_thresh: float = 0.0,
        max_detections: int | None = None,
        nms: NMS = nms,
    ) -> tuple[Detections, int]:
        """Detects objects in the tiles and the overview of a photograph, and merges them.

        Args:
            image: (H, W, 3) uint8, the photograph.
            detect: The detector: maps images to detections.
            iou_thresh: As for :meth:`merge`.
            score_thresh: Detections below this score are left out.
            max_detections: The detector's maximum number of detections per image; None if there is
                no limit.
            nms: As for :meth:`merge`.

        Returns:
            Detections in pixels of the photograph, best first; and the number of images with
            ``max_detections`` detections of at least ``score_thresh``, which may have more objects.
        """
        images = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in self.windows]
        if self.overview_size is not None:
            shrunk = Image.fromarray(np.ascontiguousarray(image)).resize(
                self.overview_size, Image.Resampling.BOX
            )
            images.append(np.asarray(shrunk))
        found = [x.select(x.scores >= score_thresh) for x in detect(images)]
        num_full = sum(len(x.scores) == max_detections for x in found)
        overview = found.pop() if self.overview_size is not None else None
        return self.merge(found, overview, iou_thresh, nms), num_full

    def merge(
        self,
        tiles: Sequence[Detections],
        overview: Detections | None,
        iou_thresh: float,
        nms: NMS = nms,
    ) -> Detections:
        """Merges the detections in the tiles into those of the photograph.

        * A box that ends at an inner border of its tile is dropped if its other end is inside the
          neighboring tile, which therefore sees more of the object.
        * Only boxes longer than the overlap are taken from the overview: they may be incomplete in
          every tile.
        * NMS per class removes duplicates; a cut box is removed rather than a complete one.
        * Remaining cut boxes are dropped if a larger box of their class covers them.

        Args:
            tiles: Detections in each of :attr:`windows`, in pixels of the tile.
            overview: Detections in the overview, in its pixels; None if there is none.
            iou_thresh: IoU above which NMS removes the box with the lower score.
            nms: A function with the contract of :func:`~atss_d2.plain.detections.nms`.

        Returns:
            Detections in pixels of the photograph, best first.
        """
        parts, are_cut = [], []
        for window, tile in zip(self.windows, tiles, strict=True):
            tile = tile._replace(boxes=tile.boxes + np.array(window[:2] * 2, tile.boxes.dtype))
            is_cut, is_seen_better = self._cuts(tile.boxes, window)
            parts.append(tile.select(~is_seen_better))
            are_cut.append(is_cut[~is_seen_better])
        if overview is not None and self.overview_size is not None:
            scale = np.tile(np.divide(self._image_size, self.overview_size), 2)
            boxes = (overview.boxes * scale).astype(overview.boxes.dtype)
            is_large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) > self.overlap
            parts.append(overview._replace(boxes=boxes).select(is_large))
            are_cut.append(np.zeros(is_large.sum(), bool))
        merged, is_cut = concatenate(parts), np.concatenate(are_cut)
        # Boxes that may be cut are ranked after all others, regardless of their scores.
        ranks = merged.scores - 2 * is_cut.astype(merged.scores.dtype)
        keep = nms(merged.boxes, ranks, merged.classes, iou_thresh)
        merged, is_cut = merged.select(keep), is_cut[keep]
        return merged.select(~_is_covered(merged, is_cut)).best_first()

    def _cuts(self, boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns masks (D,): boxes that a border may cut, and boxes seen better by a neighbor."""
        is_cut = np.zeros(len(boxes), bool)
        is_seen_better = np.zeros(len(boxes), bool)
        for axis, spans in ((0, self._columns), (1, self._rows)):
            i = spans.index((window[axis], window[axis + 2]))
            start, stop = spans[i]
            low, high = boxes[:, axis], boxes[:, axis + 2]
            if i > 0:
                is_cut_here = low <= start + self._margin
                is_cut |= is_cut_here
                is_seen_better |= is_cut_here & (high < spans[i - 1][1] - self._margin)
            if i + 1 < len(spans):
                is_cut_here = high >= stop - self._margin
                is_cut |= is_cut_here
                is_seen_better |= is_cut_here & (low > spans[i + 1][0] + self._margin)
        return is_cut, is_seen_better


def check_tile_options(size: int, overlap: float) -> None:
    """Checks the size and the overlap of tiles.

    Raises:
        ValueError: A tile is smaller than 32 pixels, or ``overlap`` is outside [0, 0.9].
    """
    if size < 32:
        raise ValueError(f"the size of tiles must be at least 32 pixels, got {size}")
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"the overlap of tiles must be between 0 and 0.9, got {overlap}")


def _is_covered(detections: Detections, is_cut: np.ndarray) -> np.ndarray:
    """Returns (D,) bool: cut boxes mostly covered by a larger box of their class."""
    is_covered = np.zeros(len(is_cut), bool)
    cut = np.flatnonzero(is_cut)
    if len(cut) == 0:
        return is_covered
    boxes, classes = detections.boxes, detections.classes
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)  # (D,)
    top_left = np.maximum(boxes[cut, None, :2], boxes[None, :, :2])  # (C, D, 2)
    bottom_right = np.minimum(boxes[cut, None, 2:], boxes[None, :, 2:])
    overlaps = (bottom_right - top_left).clip(min=0).prod(axis=2)  # (C, D)
    is_larger = (areas[None] > areas[cut, None]) & (classes[None] == classes[cut, None])
    is_covered[cut] = ((overlaps > _COVERED * areas[cut, None]) & is_larger).any(axis=1)
    return is_covered
