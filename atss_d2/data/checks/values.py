"""Values of a JSON that may be of any type, as numbers and ids."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def to_numbers(values: Sequence[Any]) -> np.ndarray:
    """Returns the values (n,) as float64; NaN for everything that is not a number."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, np.float64)
        except OverflowError:
            pass
    return np.array([to_number(x) for x in values], np.float64)


def to_number(value: Any) -> float:
    """Returns the value as a float; NaN if it is not a number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def to_boxes(raw: Sequence[Any]) -> np.ndarray:
    """Returns (n, 4) float64; a row of NaN for everything that is not four numbers.

    ``np.array`` would read the text "12" as a number.
    """
    if set(map(type, raw)) <= {list, tuple} and set(map(len, raw)) <= {4}:
        values = list(itertools.chain.from_iterable(raw))
        if set(map(type, values)) <= {int, float}:
            return to_numbers(values).reshape(-1, 4)
    boxes = np.full((len(raw), 4), np.nan)
    for i, box in enumerate(raw):
        box = box.tolist() if isinstance(box, np.ndarray) else box
        if isinstance(box, list | tuple) and len(box) == 4:
            row = [to_number(x) for x in box]
            boxes[i] = row if not any(map(math.isnan, row)) else math.nan
    return boxes


def is_hashable(value: Any) -> bool:
    """Returns whether the value can be an id, unlike a list."""
    return not isinstance(value, list | dict)
