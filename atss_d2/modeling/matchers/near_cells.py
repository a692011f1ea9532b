"""Tables of the cells of a map that may be among the k nearest ones to a point, in all cases.

These cells depend on k and on how many cells lie on each side of the one nearest to the point, but
not on the size of the map or on where around that cell the point is. For k = 4, with x for the
nearest cell, o for the others and * for a point beyond the map:

    far from       at the right    in the corner   beyond the      beyond the
    the border     border          of the map      right border    corner
    . . o . .      . . o |         . . o |         . . o |         . . . o |
    . o o o .      . o o |         . o o |         . o o |         . . . o |
    o o x o o      o o x |         o o x |         . o x | *       . . o o |
    . o o o .      . o o |         ------          . o o |         o o o x |
    . . o . .      . . o |                         . . o |         --------*

Distances are in cells, which are square. Shapes: n cells of one case, S of all cases, padded.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

NO_CELL = 2**32  # an offset that leads outside any map

# A cell counts as nearer than another only if it is nearer by this much, in squared cells, so that
# rounding decides nothing. It costs nothing: the exact differences compared here are even numbers.
_MARGIN = 1.0


class Axis(NamedTuple):
    """Where a point is along x or y, and how many cells are on each side."""

    below: int  # number of cells below the nearest one, limited to those that may matter
    above: int  # likewise above the nearest one
    side: int  # -1, 1: the point lies below or above all cells; 0: within half a cell of one

    def mirrored(self) -> Axis:
        return Axis(self.above, self.below, -self.side)


@functools.lru_cache(maxsize=1024)
def axis_cases(size: int, topk: int) -> tuple[tuple[Axis, ...], np.ndarray]:
    """Lists the cases that a coordinate of a point can be in.

    Args:
        size: Cells along this axis.
        topk: k.

    Returns:
        The distinct cases; and the number of the case (size + 2,) of a point below the map, of one
        nearest to cell 0, 1, ..., size - 1, and of one above the map.
    """
    axes = [_axis(cell, size, topk) for cell in range(-1, size + 1)]
    numbers = {axis: i for i, axis in enumerate(dict.fromkeys(axes))}
    return tuple(numbers), np.array([numbers[axis] for axis in axes])


def _axis(cell: int, size: int, topk: int) -> Axis:
    """Returns the case of a point nearest to a cell; -1 and ``size`` are beyond the map."""
    side = -1 if cell < 0 else int(cell >= size)
    cell = min(max(cell, 0), size - 1)
    below, above = cell, size - 1 - cell
    # The row of a cell that lies farther out already contains k nearer cells: on both sides of the
    # point if there are that many, else on one side.
    both_sides = (topk + 1) // 2
    most = both_sides if min(below, above) >= both_sides else topk
    return Axis(min(below, most), min(above, most), side)


@functools.lru_cache(maxsize=256)
def near_cells(topk: int, x_axes: tuple[Axis, ...], y_axes: tuple[Axis, ...]) -> np.ndarray:
    """Makes the table of the cells that may be among the k nearest ones.

    Args:
        topk: k.
        x_axes: Cases of x.
        y_axes: Cases of y.

    Returns:
        (len(y_axes) * len(x_axes), S, 2): x and y relative to the nearest cell, row by row of
        cases, padded with :data:`NO_CELL`.
    """
    rows = [_near_cells(topk, x, y) for y in y_axes for x in x_axes]
    table = np.full((len(rows), max(topk, *map(len, rows)), 2), NO_CELL, np.int64)
    for row, cells in zip(table, rows):
        row[: len(cells)] = cells
    return table


@functools.cache
def _near_cells(topk: int, x: Axis, y: Axis) -> np.ndarray:
    """Returns the cells (n, 2) of a case for which fewer than k others are surely nearer."""
    # The mirror image of a case has the mirror image of its cells.
    if x.mirrored() < x:
        return _near_cells(topk, x.mirrored(), y) * (-1, 1)
    if y.mirrored() < y:
        return _near_cells(topk, x, y.mirrored()) * (1, -1)
    if y < x:
        return _near_cells(topk, y, x)[:, ::-1]
    cells = np.stack(
        np.meshgrid(np.arange(-x.below, x.above + 1), np.arange(-y.below, y.above + 1)), axis=-1
    ).reshape(-1, 2)
    # All cells of the rectangle between the nearest one and a cell d are nearer than d, except up
    # to three next to the point, which may be equally near. Larger rectangles contain k nearer
    # cells.
    cells = cells[(np.abs(cells) + 1).prod(axis=1) <= topk + 3]
    differences = _largest_difference(cells[:, 0], x.side) + _largest_difference(
        cells[:, 1], y.side
    )
    return cells[(differences < -_MARGIN).sum(axis=1) < topk]


def _largest_difference(cells: np.ndarray, side: int) -> np.ndarray:
    """Returns by how much a cell c can be farther than a cell d along one axis: (n, n), [d, c].

    The squared distances from a point f to c and to d differ by c^2 - d^2 - 2 f (c - d), which is
    largest at an end of the range of f: -1/2 to 1/2, or from there to infinity for a point beyond
    the map.
    """
    c, d = cells, cells[:, None]
    if side == 0:
        term = np.abs(c - d)
    else:
        toward = side * (c - d)  # by how much c is nearer to the side of the point
        term = np.where(toward >= 0, -toward, np.inf)
    return c**2 - d**2 + term
