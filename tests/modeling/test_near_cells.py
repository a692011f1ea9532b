"""The table of near cells: it holds the nearest ones of every point, and few others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers.grid import MAX_TOPK
from atss_d2.modeling.matchers.near_cells import NO_CELL, axis_cases, near_cells


def table_row(topk, width, height, x, y):
    """The cells that the table has for a point, as a set of (column, row)."""
    x_cases, x_numbers = axis_cases(width, topk)
    y_cases, y_numbers = axis_cases(height, topk)
    table = near_cells(topk, x_cases, y_cases)
    # Numbered from the place below the map; half way between two cells either may be taken.
    column, row = (min(max(round(f), -1), size) for f, size in ((x, width), (y, height)))
    cells = table[y_numbers[row + 1] * len(x_cases) + x_numbers[column + 1]]
    nearest = np.array((min(max(column, 0), width - 1), min(max(row, 0), height - 1)))
    return {tuple(cell) for cell in (cells[cells[:, 0] != NO_CELL] + nearest).tolist()}


sides = st.one_of(st.integers(1, 8), st.integers(1, 45))


@st.composite
def places(draw, size):
    """A coordinate in cells: near and far, in the middle of cells, between them, at the border."""
    kind = draw(st.sampled_from(["inside", "cell", "between", "beyond", "far"]))
    if kind == "cell":
        return draw(st.integers(0, size - 1))
    if kind == "between":
        return draw(st.integers(-1, size)) + 0.5
    far = {"inside": (-0.7, size - 0.3), "beyond": (-9, size + 9), "far": (-500, size + 500)}
    return draw(st.floats(*far[kind]))


@settings(max_examples=200, derandomize=True)
@given(data=st.data(), topk=st.integers(1, MAX_TOPK), width=sides, height=sides)
def test_all_of_the_nearest_cells_are_in_the_table(data, topk, width, height):
    x, y = data.draw(places(width)), data.draw(places(height))
    cells = [(column, row) for row in range(height) for column in range(width)]
    distances = {(i, j): (i - x) ** 2 + (j - y) ** 2 for i, j in cells}
    # With all that are as far as the k-th nearest: any of them may have the lower index.
    limit = sorted(distances.values())[min(topk, len(cells)) - 1]
    nearest = {cell for cell, distance in distances.items() if distance <= limit * (1 + 1e-9)}
    assert nearest <= table_row(topk, width, height, x, y) <= set(cells)


def test_near_cells_by_hand():
    """The pictures in near_cells.py."""
    far_from_border = {(i, j) for i in range(-2, 3) for j in range(-2, 3) if abs(i) + abs(j) <= 2}
    assert table_row(4, 20, 20, 9, 9) == {(9 + i, 9 + j) for i, j in far_from_border}
    at_the_border = {(19 + i, 9 + j) for i, j in far_from_border if i <= 0}
    assert table_row(4, 20, 20, 19, 9) == at_the_border
    corner = {(19 + i, 19 + j) for i, j in far_from_border if i <= 0 and j <= 0}
    assert table_row(4, 20, 20, 19, 19) == corner
    assert table_row(4, 20, 20, 25, 9) == at_the_border - {(17, 9)}
    beyond = {(19, 16), (19, 17), (18, 18), (19, 18), (16, 19), (17, 19), (18, 19), (19, 19)}
    assert table_row(4, 20, 20, 25, 30) == beyond
    assert table_row(1, 1, 1, -3, 8) == {(0, 0)}


@pytest.mark.parametrize(("topk", "most"), [(1, 9), (4, 13), (9, 21), (19, 37)])
def test_near_cells_are_few(topk, most):
    """Each of them is one of the k nearest for some point, but for ties of measure zero."""
    assert len(table_row(topk, 60, 60, 30, 30)) == most
