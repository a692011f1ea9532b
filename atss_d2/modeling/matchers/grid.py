"""Finds the anchors nearest to a box on grids in O(boxes), not O(boxes x anchors).

The center of a box is nearest to one cell of each feature map. A table (see near_cells.py) lists
the cells around it that may be among the k nearest, and the exact distances of their anchors are
compared.

Shapes: L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A) anchors, M boxes of
the batch, m boxes of a chunk, S cells of a row of the table, C candidates of one box.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry import box_centers
from .near_cells import NO_CELL, axis_cases, near_cells
from .selection import box_chunks

MAX_TOPK = 32  # a table for a larger k takes long to make

# Maximum deviation of an anchor from its place on the grid, in cells.
_MAX_DEVIATION = 2e-4
_MAX_COORDINATE = 1e15  # keeps squared distances finite
_NO_KEY = 2**63 - 1  # of a missing anchor: above the key of every distance


def anchor_grid(
    anchors: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]] | None,
    *,
    topk: int,
    num_anchors: int,
) -> AnchorGrid | None:
    """Returns the grid that finds the anchors near boxes; images of the same size share one.

    Args:
        anchors: L levels, each (Ri, 4).
        sizes: (Hi, Wi) of the levels, if they are known to be grids of square cells. None: they are
            found from the anchors, see :func:`grid_sizes_of`.
        topk: k.
        num_anchors: A.

    Returns:
        The grid; None if all distances must be compared: a level is not a grid or k >
        :data:`MAX_TOPK`.

    Raises:
        ValueError: The sizes do not match the numbers of anchors.
    """
    if sizes is not None:
        _check_sizes(sizes, anchors, num_anchors)
    if topk > MAX_TOPK:
        return None
    sizes = grid_sizes_of(anchors, num_anchors) if sizes is None else sizes
    if sizes is None:
        return None
    return _cached_grid(tuple((int(h), int(w)) for h, w in sizes), topk, num_anchors)


def _check_sizes(
    sizes: Sequence[tuple[int, int]], anchors: Sequence[Tensor], num_anchors: int
) -> None:
    if len(sizes) != len(anchors):
        raise ValueError(f"grid_sizes has {len(sizes)} levels, anchors have {len(anchors)}")
    for level, ((height, width), boxes) in enumerate(zip(sizes, anchors)):
        if height * width * num_anchors != len(boxes) or min(height, width) < 1:
            raise ValueError(
                f"grid_sizes[{level}] is {height} x {width} locations of {num_anchors} anchors, "
                f"but level {level} has {len(boxes)} anchors"
            )


def grid_sizes_of(anchors: Sequence[Tensor], num_anchors: int) -> list[tuple[int, int]] | None:
    """Finds out whether anchors lie on grids of square cells, as Detectron2's do.

    It reads the anchors, for which the host waits for the device.

    Args:
        anchors: L levels, each (Ri, 4).
        num_anchors: A.

    Returns:
        (Hi, Wi) of the levels; None if one is not a grid with A anchors per location.
    """
    centers = box_centers(torch.cat(list(anchors)).detach()).cpu().numpy()  # (R, 2)
    ends = np.cumsum([len(level) for level in anchors])
    sizes = [_grid_size(level, num_anchors) for level in np.split(centers, ends[:-1])]
    return None if None in sizes else sizes


def _grid_size(centers: np.ndarray, num_anchors: int) -> tuple[int, int] | None:
    """Returns (Hi, Wi) of a level from the centers (Ri, 2) of its anchors, or None."""
    if len(centers) == 0 or len(centers) % num_anchors:
        return None
    x, y = centers[::num_anchors].T  # (Hi x Wi,)
    if len(x) == 1:
        return 1, 1
    # A row ends where y changes by more than half a cell.
    is_below = y - y[0] > abs(x[1] - x[0]) / 2
    width = int(is_below.argmax()) if is_below.any() else len(x)
    if len(x) % width:
        return None
    height = len(x) // width
    step = float(max(x[-1] - x[0], y[-1] - y[0])) / (max(width, height) - 1)
    rows = centers.reshape(height, width * num_anchors, 2)
    grid_x = x[0] + step * np.arange(width).repeat(num_anchors)
    grid_y = y[0] + step * np.arange(height)
    off_x = np.abs(rows[..., 0] - grid_x.astype(np.float32))
    off_y = np.abs(rows[..., 1] - grid_y.astype(np.float32)[:, None])
    limit = _MAX_DEVIATION * step
    is_grid = step > 0 and off_x.max() <= limit and off_y.max() <= limit
    return (height, width) if is_grid else None


class AnchorGrid:
    """Finds the anchors of L levels that are nearest to a point."""

    def __init__(self, sizes: Sequence[tuple[int, int]], *, topk: int, num_anchors: int) -> None:
        """
        Args:
            sizes: (Hi, Wi) of the levels.
            topk: k, cells to find on each level.
            num_anchors: A.
        """
        self._num_nearest = topk * num_anchors
        tables, lookups, corners, columns = [], [], [], []
        num_rows = num_total = 0
        for level, (height, width) in enumerate(sizes):
            count = height * width * num_anchors
            table, x_lookup, y_lookup = _lookup(height, width, topk, num_anchors)
            tables.append(table)
            lookups += [x_lookup + np.array((num_rows, num_total)), y_lookup]
            corners.append((num_total, num_total + count - num_anchors))
            # A level with fewer than k A anchors contributes all of them.
            columns += range(
                level * self._num_nearest, level * self._num_nearest + min(self._num_nearest, count)
            )
            num_rows += len(table)
            num_total += count
        self._num_total = num_total
        self._num_levels = len(tables)
        self._row_length = max(table.shape[1] for table in tables)  # S
        lengths = np.array([len(lookup) for lookup in lookups])
        sizes = np.array([(width, height) for height, width in sizes], np.float32).T
        self._on_host = {
            "sizes": sizes,  # (2, L): Wi, Hi
            "last_cells": sizes - 1,
            # The first and the last location of each level: indices of anchors (2, L).
            "corners": np.array(corners).T,
            # See _lookup. x and y of each level have their own entries, one after the other.
            "lookup": np.concatenate(lookups),  # (sum_i (Wi + 2 + Hi + 2), 2)
            "cell_zero": 1 + (lengths.cumsum() - lengths).reshape(-1, 2).T,  # (2, L)
            "table": np.concatenate([_pad(table, self._row_length) for table in tables]),
            "of_location": np.arange(num_anchors),
            "columns": np.array(columns),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.from_numpy(np.ascontiguousarray(value)).to(device, non_blocking=True)
                for name, value in self._on_host.items()
            }
        return self._on_device[device]

    def nearest_anchors(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Finds what :func:`nearest_anchors_per_level` finds, including all ties.

        This holds for boxes whose center is at most 500 cells beyond the border of a level. Farther
        out, float32 cannot distinguish the distances of neighboring anchors, and the candidates are
        some k A anchors at that border.

        Args:
            anchors: (R, 4), all levels.
            boxes: (M, 4). A box that is not finite gets arbitrary candidates.

        Returns:
            Candidates (M, C), C = sum_i min(k A, Ri): indices into the R anchors, level by level,
            the nearest first.
        """
        on = self._on(anchors.device)
        # x and y of the first and the last location of each level, (2, L) each.
        first, last = box_centers(anchors[on["corners"]]).permute(2, 0, 1).unbind(dim=1)
        points = box_centers(boxes).T[..., None]  # (2, M, 1)
        points = points.nan_to_num(0.0).clamp(-_MAX_COORDINATE, _MAX_COORDINATE)
        num_near = self._num_levels * self._row_length * len(on["of_location"])
        candidates = []
        for rows in box_chunks(boxes, num_near):
            near = self._near_anchors(first, last, points[:, rows], on)  # (m, L, S A)
            candidates.append(self._nearest(near, anchors, points[:, rows], on))
        return torch.cat(candidates)

    def _nearest(
        self, near: Tensor, anchors: Tensor, points: Tensor, on: dict[str, Tensor]
    ) -> Tensor:
        """Returns candidates (m, C) among the near anchors (m, L, S A) of points (2, m, 1)."""
        exists = near < self._num_total
        near = near.clamp(max=self._num_total - 1)
        centers = box_centers(anchors.index_select(0, near.flatten())).view(*near.shape, 2)
        delta_x, delta_y = (
            coordinate - point[..., None]
            for coordinate, point in zip(centers.unbind(dim=-1), points)
        )
        distances = delta_x.square_().add_(delta_y.square_())
        keys = (distances.view(torch.int32).long() << 32).bitwise_or_(near)
        # The keys of anchors that exist are all different: topk has no ties to break.
        keys.masked_fill_(~exists, _NO_KEY)
        keys = keys.topk(self._num_nearest, dim=2, largest=False).values
        return (keys & 0xFFFFFFFF).flatten(1)[:, on["columns"]]

    def _near_anchors(
        self, first: Tensor, last: Tensor, points: Tensor, on: dict[str, Tensor]
    ) -> Tensor:
        """Returns anchors (m, L, S A) that include the nearest; R or more where there is none."""
        # Cells per pixel; a single cell is the nearest one wherever the point is.
        scales = on["last_cells"] / torch.where(last > first, last - first, 1.0)
        cells = ((points - first[:, None]) * scales[:, None]).round().clamp(min=-1)
        cells = torch.minimum(cells, on["sizes"][:, None]).long()  # (2, m, L)
        # The sums of what x and y contribute: (m, L) each.
        rows, nearest = on["lookup"][cells + on["cell_zero"][:, None]].sum(dim=0).unbind(dim=-1)
        near = on["table"].index_select(0, rows.flatten())  # (m L, S)
        of_location = nearest[..., None] + on["of_location"]  # (m, L, A)
        near = near.view(*rows.shape, self._row_length, 1) + of_location[:, :, None]
        return near.flatten(2)  # (m, L, S A)


@functools.lru_cache(maxsize=64)
def _cached_grid(sizes: tuple[tuple[int, int], ...], topk: int, num_anchors: int) -> AnchorGrid:
    return AnchorGrid(sizes, topk=topk, num_anchors=num_anchors)


def _lookup(
    height: int, width: int, topk: int, num_anchors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes the table of near cells of a level, and what finds a row of it.

    Returns:
        Table (rows, S) of anchors relative to that of the nearest cell; for each x = -1, ..., Wi of
        a cell (-1 and Wi are beyond the map), what it adds to the row number and to the index of
        the nearest anchor, (Wi + 2, 2); and likewise for y.
    """
    x_cases, x_numbers = axis_cases(width, topk)
    y_cases, y_numbers = axis_cases(height, topk)
    steps = np.array((num_anchors, num_anchors * width), np.int64)  # to the next cell in x and y
    x = np.arange(-1, width + 1).clip(0, width - 1)
    y = np.arange(-1, height + 1).clip(0, height - 1)
    return (
        near_cells(topk, x_cases, y_cases) @ steps,
        np.stack((x_numbers, x * steps[0]), axis=1),
        np.stack((y_numbers * len(x_cases), y * steps[1]), axis=1),
    )


def _pad(table: np.ndarray, row_length: int) -> np.ndarray:
    missing = row_length - table.shape[1]
    return np.pad(table, ((0, 0), (0, missing)), constant_values=NO_CELL)
