"""Detection in tiles of a large photograph: where the tiles lie, and what becomes of their boxes.

A window is (x0, y0, x1, y1) in whole pixels of the photograph, x1 and y1 excluded.

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
# A box that ends so near to a tile's border, as a fraction of the tile's size, may be cut by it.
_MARGIN = 0.01
# Part of a cut box's area that a larger box of its class must cover to replace it.
_COVERED = 0.6


def cover_overlapping(start: int, stop: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Covers [start, stop) with the fewest spans of ``size`` whose neighbors share >= ``overlap``.

    The spans are spread evenly; an interval shorter than ``size`` is one span.

    >>> cover_overlapping(0, 1000, 640, 128)
    [(0, 640), (360, 1000)]

    Raises:
        ValueError: The interval is empty, or ``size`` or ``overlap`` is impossible.
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
    """
    Raises:
        ValueError: The interval [start, stop) is empty, or ``size`` is not positive.
    """
    if stop <= start:
        raise ValueError(f"the interval [{start}, {stop}) is empty")
    if size < 1:
        raise ValueError(f"tile size must be >= 1 pixel, got {size}")


class Tiling:
    """Overlapping tiles of a photograph, and how their detections are merged.

    Every object up to ``overlap`` pixels wide and high lies whole in at least one tile. Boxes of
    larger ones come from :attr:`overview_size`, the whole photograph made as small as a tile.

    Attributes:
        windows: The tiles, row by row, all of one size.
        overlap: Pixels that neighboring tiles share at least.
        overview_size: (width, height) of the photograph with its longer side as long as a tile;
            None if the photograph is a single tile.
    """

    def __init__(
        self, width: int, height: int, *, size: int = TILE_SIZE, overlap: float = TILE_OVERLAP
    ) -> None:
        """
        Args:
            width: Of the photograph, pixels.
            height: Of the photograph, pixels.
            size: Side of a tile, pixels of the photograph; less where the photograph is smaller.
            overlap: Fraction of ``size`` that neighboring tiles share at least, in [0, 1).

        Raises:
            ValueError: ``size`` or ``overlap`` is impossible.
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
            detect: The detector: of images gives the detections.
            iou_thresh: As for :meth:`merge`.
            score_thresh: Detections below this score are left out.
            max_detections: The most that the detector gives for an image; None if there is no such
                number.
            nms: As for :meth:`merge`.

        Returns:
            Detections in pixels of the photograph, best first; and in how many images the detector
            gave ``max_detections``, all of ``score_thresh`` or more, so that there may be others.
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
        """Detections of the photograph from those of its tiles.

        * A box that ends at an inner border of its tile is dropped if the neighbor there sees the
          object from its other end on, and so sees more of it.
        * Of the overview only boxes longer than the overlap count: no tile need see them whole.
        * NMS per class removes what was found twice, of a whole and a cut box the cut one.
        * What then remains of boxes cut by a border is dropped where a larger box of the class
          covers it.

        Args:
            tiles: Detections of each of :attr:`windows`, in pixels of the tile.
            overview: Those of the overview, in its pixels; None if there is none.
            iou_thresh: IoU above which NMS removes the box of lower score.
            nms: Another function with the contract of :func:`~atss_d2.plain.detections.nms`.

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
        # Boxes that may be cut come after all others, whatever their scores.
        ranks = merged.scores - 2 * is_cut.astype(merged.scores.dtype)
        keep = nms(merged.boxes, ranks, merged.classes, iou_thresh)
        merged, is_cut = merged.select(keep), is_cut[keep]
        return merged.select(~_is_covered(merged, is_cut)).best_first()

    def _cuts(self, boxes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Masks (D,): boxes that a border may cut, and those that a neighbor sees more of."""
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
    """
    Raises:
        ValueError: A tile is smaller than 32 pixels, or ``overlap`` is outside [0, 0.9].
    """
    if size < 32:
        raise ValueError(f"the size of tiles must be at least 32 pixels, got {size}")
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"the overlap of tiles must be between 0 and 0.9, got {overlap}")


def _is_covered(detections: Detections, is_cut: np.ndarray) -> np.ndarray:
    """(D,) bool, cut boxes most of whose area a larger box of the class covers."""
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
