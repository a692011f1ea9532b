"""The anchors nearest to a box, when anchors lie on regular grids: O(boxes), not O(boxes x anchors).

Walking away from the location nearest to a box, along a row or a column, locations only get
farther. So the k nearest ones are among few cells around it, which depend on k and on how near the
border of the map is, but not on the size of the map. A table holds these cells for every case, and
the exact distances of its anchors are compared.

Shapes: L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A) anchors, M boxes of
the batch, S cells of a row of the table, C candidates of one box.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import box_centers

# A cell counts as nearer than another only if it is by this much, in squared cells, so that the
# rounding of coordinates decides nothing here.
_MARGIN = 0.02
# The nearest cell may be off by this much, in cells, beyond the half that rounding allows.
_SLACK = 0.005
_NO_CELL = 2**24  # an offset that leads out of any map
# Above this k, more cells are looked at than are needed, instead of finding out which those are.
_MAX_EXACT_TOPK = 32


def grid_sizes_of(anchors: Sequence[Tensor], num_anchors: int) -> list[tuple[int, int]] | None:
    """Finds out whether anchors lie on grids, as those of ``DefaultAnchorGenerator`` do.

    Looks at the values, which must therefore be on the host.

    Args:
        anchors: L levels, each (Ri, 4).
        num_anchors: A.

    Returns:
        (Hi, Wi) of the L levels; None when a level is no grid of A anchors per location.
    """
    sizes = [_grid_size(box_centers(level), num_anchors) for level in anchors]
    return None if any(size is None for size in sizes) else sizes


def _grid_size(centers: Tensor, num_anchors: int) -> tuple[int, int] | None:
    count = len(centers)
    if count == 0 or count % num_anchors:
        return None
    cells = centers.view(-1, num_anchors, 2)
    x, y = cells[:, 0].unbind(dim=1)
    # The first row ends where y changes.
    width = int((y - y[0]).abs().le(_tolerance(x, y)).cumprod(0).sum())
    if len(x) % width:
        return None
    height = len(x) // width
    step_x = (x[1] - x[0]) if width > 1 else x.new_ones(())
    step_y = (y[width] - y[0]) if height > 1 else y.new_ones(())
    if not (step_x > 0 and step_y > 0):
        return None
    grid_x = x[0] + step_x * torch.arange(width, dtype=x.dtype)
    grid_y = y[0] + step_y * torch.arange(height, dtype=x.dtype)
    expected = torch.stack(
        (grid_x.expand(height, width), grid_y[:, None].expand(height, width)), dim=2
    ).view(-1, 1, 2)
    tolerance = _SLACK * torch.minimum(step_x, step_y)
    return (height, width) if bool(((cells - expected).abs() <= tolerance).all()) else None


def _tolerance(x: Tensor, y: Tensor) -> Tensor:
    return 1e-6 * (x.abs().amax() + y.abs().amax() + 1)


class AnchorGrid:
    """Which anchors of L levels are near which place."""

    def __init__(self, sizes: Sequence[tuple[int, int]], topk: int, num_anchors: int) -> None:
        """
        Args:
            sizes: (Hi, Wi) of the levels.
            topk: k, cells to find on each level.
            num_anchors: A.
        """
        self.num_anchors = num_anchors
        self._num_nearest = topk * num_anchors
        heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
        counts = heights * widths * num_anchors  # (L,)
        self.num_total = int(counts.sum())
        first = counts.cumsum() - counts
        reach = _border_reach(topk)
        tables = [_cells_near(topk, min(w, 2 * reach + 1), min(h, 2 * reach + 1)) for h, w in sizes]
        num_cells = max(topk, *(table.shape[1] for table in tables))
        self._reach = reach
        self._constants = {
            "first": first,
            # Neighbours of the first anchor; itself where the map has one column or row.
            "right": first + num_anchors * (widths > 1),
            "below": first + num_anchors * widths * (heights > 1),
            "extents": np.stack((widths, heights), axis=1),  # (L, 2)
            "row_length": widths * num_anchors,
            "table_start": np.arange(len(counts)) * (2 * reach + 3) ** 2,
            "table": np.concatenate([_pad(table, num_cells) for table in tables]),
            # A level of fewer than k A anchors gives all it has.
            "columns": np.concatenate(
                [
                    np.arange(min(self._num_nearest, count)) + i * self._num_nearest
                    for i, count in enumerate(counts)
                ]
            ),
            "anchor": np.arange(num_anchors),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.from_numpy(value).to(device) for name, value in self._constants.items()
            }
        return self._on_device[device]

    def nearest_anchors(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """What :func:`nearest_anchors_per_level` finds, to the last tie.

        Args:
            anchors: (R, 4), all levels.
            boxes: (M, 4).

        Returns:
            Candidates (M, C), C = sum_i min(k A, Ri): indices into the R anchors, level by level,
            the nearest first.
        """
        on = self._on(anchors.device)
        centers = box_centers(anchors)  # (R, 2)
        points = box_centers(boxes)[:, None]  # (M, 1, 2)
        cells = self._cells(centers, points, on)  # (M, L, 2)
        last = on["extents"] - 1  # (L, 2)
        rows = self._table_rows(cells, last, on["table_start"])  # (M, L)
        nearest = torch.minimum(cells.clamp(min=0), last)  # (M, L, 2)

        near = nearest[:, :, None] + on["table"][rows]  # (M, L, S, 2): x, y of cells
        is_cell = ((near >= 0) & (near <= last[:, None])).all(dim=-1)  # (M, L, S)
        idxs = near[..., 0] * self.num_anchors + near[..., 1] * on["row_length"][:, None]
        idxs = torch.where(is_cell, idxs, 0) + on["first"][:, None]
        if self.num_anchors > 1:
            idxs = (idxs[..., None] + on["anchor"]).flatten(2)  # (M, L, S A)
            is_cell = is_cell.repeat_interleave(self.num_anchors, dim=2)

        delta = points[:, :, None] - centers[idxs]  # (M, L, S A, 2)
        distances = delta[..., 0].square() + delta[..., 1].square()
        keys = (distances.view(torch.int32).long() << 32) | idxs
        keys = torch.where(is_cell, keys, torch.iinfo(torch.int64).max)
        # All keys are different, so topk has no ties to break.
        nearest_keys = keys.topk(self._num_nearest, dim=2, largest=False).values
        return (nearest_keys & 0xFFFFFFFF).flatten(1)[:, on["columns"]]

    def _cells(self, centers: Tensor, points: Tensor, on: dict[str, Tensor]) -> Tensor:
        """Cells (M, L, 2), x and y, of points (M, 1, 2): -1 or Wi, Hi outside of the map."""
        origins = centers[on["first"]]  # (L, 2)
        steps = torch.stack(
            (
                centers[on["right"], 0] - origins[:, 0],
                centers[on["below"], 1] - origins[:, 1],
            ),
            dim=1,
        )  # (L, 2), 0 for a map of one column or row
        cells = (points - origins) / torch.where(steps > 0, steps, 1.0)
        cells = torch.where(steps > 0, cells.round(), 0.0).nan_to_num().clamp(min=-1)
        return torch.minimum(cells, on["extents"].to(cells.dtype)).long()

    def _table_rows(self, cells: Tensor, last: Tensor, table_start: Tensor) -> Tensor:
        """Rows (M, L) of the table: the case of each axis."""
        reach = self._reach
        below = torch.minimum(cells, cells.new_tensor(reach))
        above = torch.minimum(last - cells, cells.new_tensor(reach))
        cases = below - above + reach  # (M, L, 2)
        cases = torch.where(cells < 0, 2 * reach + 1, cases)
        cases = torch.where(cells > last, 2 * reach + 2, cases)
        return cases[..., 1] * (2 * reach + 3) + cases[..., 0] + table_start


@functools.lru_cache(maxsize=256)
def anchor_grid(sizes: tuple[tuple[int, int], ...], topk: int, num_anchors: int) -> AnchorGrid:
    """An :class:`AnchorGrid`; images of the same size share one."""
    return AnchorGrid(sizes, topk, num_anchors)


# ------------------------------------------------------------------------- tables of near cells


def _border_reach(topk: int) -> int:
    """From how many cells on a border is taken to be far away."""
    return math.isqrt(topk - 1) + 1


@functools.lru_cache(maxsize=256)
def _cells_near(topk: int, width: int, height: int) -> np.ndarray:
    """Cells that may be among the k nearest ones, for every case of x and y.

    Args:
        topk: k.
        width: Wi, or 2 reach + 1 for any larger map.
        height: The same of Hi.

    Returns:
        ((2 reach + 3)^2, S, 2) int64: x and y relative to the nearest cell, padded with
        :data:`_NO_CELL`; row ``case of y * (2 reach + 3) + case of x``.
    """
    reach = _border_reach(topk)
    num_cases = 2 * reach + 3
    rows = [np.zeros((0, 2), np.int64)] * num_cases**2
    for case_y, y in _axis_cases(height, reach).items():
        for case_x, x in _axis_cases(width, reach).items():
            rows[case_y * num_cases + case_x] = _possible_cells(topk, x, y)
    return np.stack([_pad(row[None], max(len(r) for r in rows))[0] for row in rows])


class _Axis(NamedTuple):
    """What is known about one coordinate of a point and the cells next to it."""

    below: int  # so many cells lie below the nearest one,
    above: int  # so many above,
    open_below: bool  # and there may be more
    open_above: bool
    side: int  # -1, 1: the point lies below or above all cells; 0: within half a cell of one


def _axis_cases(size: int, reach: int) -> dict[int, _Axis]:
    """The cases of a coordinate, numbered as in ``AnchorGrid._table_rows``."""
    cases = {}
    for cell in range(size):
        below, above = min(cell, reach), min(size - 1 - cell, reach)
        cases[below - above + reach] = _Axis(below, above, below == reach, above == reach, 0)
    first, last = min(size - 1, reach), min(size - 1, reach)
    cases[2 * reach + 1] = _Axis(0, first, False, first == reach, -1)
    cases[2 * reach + 2] = _Axis(last, 0, last == reach, False, 1)
    return cases


def _possible_cells(topk: int, x: _Axis, y: _Axis) -> np.ndarray:
    """Cells (n, 2) that fewer than k cells are certainly nearer than, the nearest first."""
    candidates = _grid(_offsets(x, topk), _offsets(y, topk))  # (n, 2)
    # Cells between the nearest one and a candidate are nearer, or as near next to the nearest.
    product = (np.abs(candidates) + 1).prod(axis=1)
    candidates = candidates[product <= topk + 3]
    if topk <= _MAX_EXACT_TOPK:
        candidates = candidates[_count_nearer(candidates, topk, x, y) < topk]
    order = np.argsort((candidates**2).sum(axis=1), kind="stable")
    return candidates[order]


def _offsets(axis: _Axis, topk: int) -> np.ndarray:
    low = topk if axis.open_below else axis.below
    high = topk if axis.open_above else axis.above
    return np.arange(-low, high + 1)


def _count_nearer(candidates: np.ndarray, topk: int, x: _Axis, y: _Axis) -> np.ndarray:
    """Number (n,) of the cells that exist and are nearer than a candidate, wherever the point is.

    Squared distances from a point f to the cells c and d differ by |c|^2 - |d|^2 - 2 f (c - d),
    which is largest at an end of the range of f.
    """
    others = _grid(_offsets(x, topk), _offsets(y, topk))  # (o, 2)
    exists = np.ones((len(candidates), len(others)), bool)
    difference = (others**2).sum(axis=1) - (candidates**2).sum(axis=1)[:, None].astype(float)
    for i, axis in enumerate((x, y)):
        c, d = others[:, i], candidates[:, i, None]  # (o,), (n, 1)
        # Those next to the point, and all between it and the candidate.
        exists &= (c >= np.minimum(d, -axis.below)) & (c <= np.maximum(d, axis.above))
        step = c - d
        half = 1 + 2 * _SLACK
        if axis.side == 0:
            difference += half * np.abs(step)
        else:  # beyond the border, at any distance
            towards = axis.side * step  # positive: nearer to the point
            difference += np.where(towards >= 0, -(1 - 2 * _SLACK) * towards, np.inf)
    return (exists & (difference < -_MARGIN)).sum(axis=1)


def _grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _pad(table: np.ndarray, num_cells: int) -> np.ndarray:
    """A table (rows, S, 2) with more cells in each row, which do not exist."""
    missing = num_cells - table.shape[1]
    return np.pad(table, ((0, 0), (0, missing), (0, 0)), constant_values=_NO_CELL)
