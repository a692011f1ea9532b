"""COCO's lists as columns, which hold a data set of 25 million boxes in two gigabytes.

Their entries are dicts of which any key may have any value: numbers are kept in arrays, the rest
beside them as it was found.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..json_stream import Unusual
from .findings import MAX_DESCRIBED
from .values import is_hashable, to_boxes, to_number

_BATCH, _PIECE = 1 << 12, 1 << 20  # entries that are held as dicts; rows at once
_MISSING = object()
_EXACT = 2**53  # float64 holds all integers below
_IS_MISSING, _IS_NULL, _IS_ODD = 16, 17, 18  # kinds of values; smaller ones: bit i, number i is int


class Column(Sequence):
    """M values of any type, most of them numbers, or all of them lists of so many numbers.

    As a sequence it has the values as they were found; None for missing ones.
    """

    def __init__(self, values: Iterable[Any] = (), *, width: int = 1) -> None:
        """
        Args:
            values: The first values.
            width: 4 if values are lists of four numbers, 1 if they are numbers.
        """
        self._width = width
        self._numbers, self._kinds = array("d"), array("B")
        self.odd: dict[int, Any] = {}
        self.extend(list(values))

    def extend(self, values: list[Any]) -> None:
        """Appends values, of which ``_MISSING`` is none."""
        flat, types = self._flatten(values)
        if types <= {int, float}:
            try:
                found = np.array(flat, np.float64)
            except OverflowError:
                found = np.array([np.inf])
            if int not in types or (np.abs(found) < _EXACT).all():
                kinds = np.zeros(len(flat), np.uint8)
                if int in types:
                    kinds[:] = [type(x) is int for x in flat]
                shifts = np.arange(self._width, dtype=np.uint8)
                kinds = (kinds.reshape(-1, self._width) << shifts).sum(1, dtype=np.uint8)
                self._numbers.frombytes(found.tobytes())
                self._kinds.frombytes(kinds.tobytes())
                return
        for value in values:
            self._append(value)

    def _flatten(self, values: list[Any]) -> tuple[list[Any], set[type]]:
        """Returns the numbers and their types; that of a list if they cannot be numbers only."""
        if self._width > 1:
            if set(map(type, values)) != {list} or set(map(len, values)) != {self._width}:
                return [], {list}
            values = list(itertools.chain.from_iterable(values))
        return values, set(map(type, values))

    def _append(self, value: Any) -> None:
        row, kind = [0.0] * self._width, _IS_ODD
        if value is None:
            kind = _IS_NULL
        elif value is _MISSING:
            kind = _IS_MISSING
        else:
            parts = value if self._width > 1 else [value]
            if isinstance(parts, list) and len(parts) == self._width and all(map(_is_kept, parts)):
                row, kind = parts, sum((type(x) is int) << i for i, x in enumerate(parts))
            else:
                self.odd[len(self._kinds)] = value
        self._numbers.extend(row)
        self._kinds.append(kind)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        kind = self._kinds[index]
        if kind >= _IS_MISSING:
            return self.odd[int(index)] if kind == _IS_ODD else None
        row = self._numbers[index * self._width : (index + 1) * self._width]
        row = [int(x) if kind >> i & 1 else x for i, x in enumerate(row)]
        return row if self._width > 1 else row[0]

    @property
    def kinds(self) -> np.ndarray:
        return np.frombuffer(self._kinds, np.uint8) if self._kinds else np.zeros(0, np.uint8)

    @property
    def is_missing(self) -> np.ndarray:
        """(M,) whether the entry lacks the key."""
        return self.kinds == _IS_MISSING

    @property
    def is_none(self) -> np.ndarray:
        """(M,) whether the entry lacks the key, or its value is null."""
        return self.is_missing | (self.kinds == _IS_NULL)

    @property
    def is_number(self) -> np.ndarray:
        """(M,) whether the value is in the array."""
        return self.kinds < _IS_MISSING

    @property
    def is_integer(self) -> np.ndarray:
        """(M,) whether the value is a whole number that float64 holds exactly."""
        values = self.array
        with np.errstate(invalid="ignore"):
            return self.is_number & (np.abs(values) < _EXACT) & (np.trunc(values) == values)

    @property
    def array(self) -> np.ndarray:
        """(M,) or (M, width) numbers; 0 for other values."""
        values = np.frombuffer(self._numbers) if self._numbers else np.zeros(0)
        return values if self._width == 1 else values.reshape(-1, self._width)

    def numbers(self) -> np.ndarray:
        """Returns the values as float64; NaN for everything that is not a number, or not four."""
        if self.is_number.all():
            return self.array
        values = self.array.copy()
        values[~self.is_number] = np.nan
        for i, value in self.odd.items():
            values[i] = to_number(value) if self._width == 1 else to_boxes([value])[0]
        return values

    def unhashable(self) -> list[int]:
        """Returns the indices of values that cannot be ids, like lists."""
        return [i for i, value in self.odd.items() if not is_hashable(value)]

    def look_up(self, known: Sequence[Any]) -> np.ndarray:
        """Returns (M,) the last index of each value in ``known``; -1 if it is not there."""
        index = {x: i for i, x in enumerate(known) if is_hashable(x)}
        found = np.full(len(self), -1)
        found[self.is_none] = index.get(None, -1)
        for i, value in self.odd.items():
            found[i] = index.get(value, -1) if is_hashable(value) else -1
        simple = {x: i for x, i in index.items() if _is_simple(x)}
        order = sorted(simple)
        keys = np.array([*order, np.inf])  # equals nothing of the below
        idxs = np.array([*map(simple.get, order), -1])
        # In pieces, whose temporary arrays are small.
        for first in range(0, len(self), _PIECE):
            rows = slice(first, first + _PIECE)
            values = self.array[rows]
            places = keys.searchsorted(values).clip(max=len(order))
            is_found = self.is_number[rows] & (keys[places] == values) & (np.abs(values) < _EXACT)
            found[rows][is_found] = idxs[places[is_found]]
        for i in np.flatnonzero(self.is_number & (np.abs(self.array) >= _EXACT)):
            found[i] = index.get(self[i], -1)
        return found

    def doubles(self) -> Sequence[int]:
        """Returns the indices of values that an earlier entry has; null is none."""
        others = [x for x in self.odd.values() if not isinstance(x, str | list | dict)]
        if others:  # of which true equals 1
            return doubles_of(self)
        found = [list(self.odd)[i] for i in doubles_of(list(self.odd.values()))]
        values = self.array if self.is_number.all() else self.array[self.is_number]
        if not (values[1:] > values[:-1]).all():
            order = values.argsort(kind="stable")
            ordered = values[order]
            same = order[1:][ordered[1:] == ordered[:-1]]
            found += np.flatnonzero(self.is_number)[same].tolist()
        return sorted(found)


def doubles_of(ids: Sequence[Any]) -> list[int]:
    """Returns indices of ids that an earlier entry has; those that cannot be ids are left out."""
    seen, found = set(), []
    for i, x in enumerate(ids):
        if x is None or not is_hashable(x):
            continue
        if x in seen:
            found.append(i)
        seen.add(x)
    return found


def _is_kept(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _EXACT)


def _is_simple(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _EXACT


class Cases(Sequence):
    """Indices of entries that are wrong, and the values of the first of them."""

    def __init__(self) -> None:
        self._idxs = array("q")
        self.values: dict[int, Any] = {}

    def add(self, index: int, value: Any) -> None:
        self._idxs.append(index)
        if len(self.values) < MAX_DESCRIBED:
            self.values[index] = value

    def __len__(self) -> int:
        return len(self._idxs)

    def __getitem__(self, index):
        return self._idxs[index]


class Images:
    """The images of a file: what is needed of them."""

    KEYS = ("id", "file_name", "width", "height")

    def __init__(self, images: Iterable[dict] = ()) -> None:
        self.ids, self.names, self.widths, self.heights = columns = ([], [], [], [])
        for batch in _batches(images):
            for key, column in zip(self.KEYS, columns):
                column += [image.get(key) for image in batch]

    def __len__(self) -> int:
        return len(self.ids)


class Annotations:
    """The annotations of a file: columns, and what is wrong with the rest of their keys."""

    def __init__(self, annotations: Iterable[dict] = ()) -> None:
        self.columns = {key: Column() for key in ("id", "image_id", "category_id", "iscrowd")}
        self.columns |= {"area": Column(), "bbox": Column(width=4)}
        self.cases = {key: Cases() for key in ("ignore", "keypoints", "segmentation", "short")}
        self._num = 0
        for batch in _batches(annotations):
            self._extend(batch)

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, key: str) -> Column:
        return self.columns[key]

    def _extend(self, batch: list[dict]) -> None:
        for key, column in self.columns.items():
            column.extend([x.get(key, _MISSING) for x in batch])
        for index, annotation in enumerate(batch, self._num):
            get = annotation.get
            if get("ignore", 0) != 0:  # as Detectron2 tests it
                self.cases["ignore"].add(index, annotation["ignore"])
            points, polygons = get("keypoints"), get("segmentation")
            if points and not _is_numbers(points):
                self.cases["keypoints"].add(index, points)
            fault = _fault_of(polygons) if polygons else ""
            if fault:
                self.cases[fault].add(index, polygons)
        self._num += len(batch)


@dataclass
class Content:
    """COCO's lists: the first two in columns, the categories as they are."""

    images: Images
    annotations: Annotations
    categories: list[dict]


def _batches(entries: Iterable[Any]) -> Iterator[list[dict]]:
    iterator = iter(entries)
    while batch := list(itertools.islice(iterator, _BATCH)):
        if set(map(type, batch)) != {dict}:
            raise Unusual("has an image or annotation that is not an object with keys")
        yield batch


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int | float) for x in value)


def _fault_of(polygons: Any) -> str:
    """Returns a key of ``Annotations.cases``, or "" if there is nothing wrong."""
    if isinstance(polygons, dict):
        return "" if {"counts", "size"} <= set(polygons) else "segmentation"
    if not isinstance(polygons, list) or not all(isinstance(x, list) for x in polygons):
        return "segmentation"
    return "short" if all(len(x) < 6 or len(x) % 2 for x in polygons) else ""
