"""Choosing rows by pattern."""

import pytest

from ablations.rows import QUALITY_ROWS, ROWS, RPN_ROWS, TABLES, find_row, select_rows


def test_names_are_unique_and_belong_to_a_table():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) == 41
    assert list(dict.fromkeys(row.table for row in ROWS)) == list(TABLES)


def test_patterns_give_rows_once_and_in_the_order_of_the_paper():
    rows = select_rows(["table4/k[39]", "table2/*", "table4/k3"])
    assert [row.name for row in rows] == [
        "table2/iou_box",
        "table2/iou_point",
        "table2/spatial_scale_box",
        "table2/spatial_scale_point",
        "table4/k3",
        "table4/k9",
    ]
    assert select_rows(["*"]) == [*ROWS, *QUALITY_ROWS, *RPN_ROWS]
    assert find_row("table5/scale6").config == "ablations/table5/scale6"


def test_a_pattern_that_fits_nothing_is_an_error_that_helps():
    with pytest.raises(ValueError, match=r"no row fits 'table4/k4'; did you mean .*table4/k"):
        select_rows(["table1/*", "table4/k4"])
    with pytest.raises(ValueError, match="--list names all rows"):
        select_rows(["@"])
