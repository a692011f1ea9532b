"""Checks the structure of COCO's dict: its lists, ids, sizes and the keys that readers need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..categories import parse_categories
from ..errors import DataError
from .boxes import check_boxes, describer, name_of, shorten
from .columns import Annotations, Column, Content, doubles_of
from .findings import Example, Report
from .json_file import KEYS
from .table import Table, table_of_coco

_MAX_AREA = 1e10  # the largest that pycocotools evaluates


def require_lists(content: dict[str, Any], place: str) -> None:
    """Checks that a dict has COCO's three lists, and that they hold dicts.

    Raises:
        DataError: It has not, or one is empty.
    """
    for key in KEYS:
        if not isinstance(content.get(key), list):
            raise DataError(
                f"{place} has no list '{key}': a COCO JSON has images, annotations and categories"
            )
        if not set(map(type, content[key])) <= {dict}:
            raise DataError(f"{place}: '{key}' must be a list of objects with keys")
        if not content[key]:
            raise DataError(
                f"{place} has no {key}: there is nothing to train on or to compare with"
            )


def check_content(report: Report, content: Content) -> Table:
    """Reports everything that is wrong in COCO's lists, except for the image files.

    Args:
        report: Takes the findings.
        content: The lists, none of them empty.

    Returns:
        The columns of the data set.
    """
    images, annotations, categories = content.images, content.annotations, content.categories
    table = table_of_coco(images, annotations, categories)
    numbers = (len(images), len(annotations), len(categories))
    report.counts.update(zip(KEYS, numbers))
    _check_categories(report, categories)
    _check_images(report, table)
    areas = annotations["area"].numbers()
    usable = check_boxes(report, table, areas)
    _check_annotation_ids(report, table)
    _check_references(report, table)
    _check_keys(report, table, annotations)
    _check_areas(report, table, areas, annotations["area"])
    is_object = usable & ~table.is_crowd
    num_boxes = np.bincount(table.classes[is_object], minlength=len(categories))
    empty = [f"'{categories[i].get('name')}'" for i in np.flatnonzero(num_boxes == 0)]
    if is_object.any():
        report.add("category_empty", empty)
    num_empty = len(images) - len(np.unique(table.image_idxs[is_object]))
    report.counts["images without objects"] = num_empty
    return table


def _check_categories(report: Report, categories: Sequence[dict]) -> None:
    try:
        found = parse_categories(categories)
    except (ValueError, TypeError) as error:
        report.say("category_entry", f"{error}: give each class an integer id and a name")
        return
    names = Counter(category["name"] for category in found)
    report.add("category_name_double", [f"'{name}'" for name, n in names.items() if n > 1])


def _check_images(report: Report, table: Table) -> None:
    def describe(index: int) -> Example:
        name, image_id = table.names[index], table.image_ids[index]
        text = f"id {shorten(image_id)}" + (f" ({name})" if isinstance(name, str) else "")
        return Example(text, name if isinstance(name, str) else None, image_id)

    ids, names = table.image_ids, table.names
    num = len(ids)
    is_named = [isinstance(name, str) and name != "" for name in names]
    kinds = list(map(_kind_of_id, ids))
    usual = Counter(kinds).most_common(1)[0][0]
    report.add(
        "image_entry", [i for i in range(num) if not is_named[i] or kinds[i] == "none"], describe
    )
    bad = [i for i in range(num) if kinds[i] in ("odd",) or kinds[i] not in (usual, "none")]
    report.add("image_id_type", bad, describe)
    if usual == "text":
        report.add("image_id_text", [i for i in range(num) if kinds[i] == "text"], describe)
    report.add("image_id_double", doubles_of(ids), describe)
    is_sized = (table.widths >= 1) & (table.heights >= 1)
    is_sized &= np.isfinite(table.widths) & np.isfinite(table.heights)
    report.add("image_size_missing", np.flatnonzero(~is_sized), describe)


def _kind_of_id(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return "text"
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    is_integer |= isinstance(value, float) and value.is_integer()
    # Evaluators keep ids as floating-point numbers.
    return "integer" if is_integer and abs(value) < 2**53 else "odd"


def _check_annotation_ids(report: Report, table: Table) -> None:
    ids = table.annotation_ids
    describe = _describe_id(table)
    report.add("annotation_id_double", ids.doubles(), describe)
    is_missing = ids.is_none | np.isnan(ids.array)
    is_missing[ids.unhashable()] = True
    report.add("annotation_id_missing", np.flatnonzero(is_missing), describe)
    is_wrong = ~ids.is_integer & ~is_missing
    for i, value in ids.odd.items():
        is_wrong[i] &= _kind_of_id(value) != "integer"
    report.add("annotation_id_type", np.flatnonzero(is_wrong), describe)
    zeros = np.flatnonzero(ids.is_number & (ids.array == 0))
    report.add("annotation_id_zero", zeros, describe)


def _check_references(report: Report, table: Table) -> None:
    is_wrong = table.of_image.is_missing
    is_wrong[table.of_image.unhashable()] = True
    describe = describer(table, "annotation_image")
    report.add("annotation_image_id", np.flatnonzero(is_wrong), describe)


def _describe_id(table: Table) -> Callable[[int], Example]:
    box = describer(table)

    def describe(index: int) -> Example:
        value, example = table.annotation_ids[index], box(index)
        return Example(f"id {shorten(value)}", example.file, example.image_id, value, value)

    return describe


def _check_keys(report: Report, table: Table, annotations: Annotations) -> None:
    """Checks ``iscrowd``, ``ignore``, ``keypoints`` and ``segmentation``."""
    describe_box = describer(table)

    def describer_of(values: Mapping[int, Any] | Sequence[Any]) -> Callable[[int], Example]:
        def describe(index: int) -> Example:
            example, value = describe_box(index), values[index]
            text = f"{shorten(value, 30)} in {name_of(table, table.image_idxs[index])}"
            return Example(text, example.file, example.image_id, example.annotation_id, value)

        return describe

    crowd = annotations["iscrowd"]
    report.add("crowd_missing", np.flatnonzero(crowd.is_missing), describe_box)
    is_odd = ~crowd.is_missing & ~(crowd.is_number & np.isin(crowd.array, (0, 1)))
    for i, value in crowd.odd.items():
        is_odd[i] = not isinstance(value, int | float) or value not in (0, 1)
    report.add("crowd_value", np.flatnonzero(is_odd), describer_of(crowd))
    codes = ("ignore", "keypoints", "segmentation", "segmentation_short")
    for code, cases in zip(codes, annotations.cases.values()):
        of = len(annotations) if code == "segmentation_short" else 0
        report.add(code, cases, describer_of(cases.values), of=of)


def _check_areas(report: Report, table: Table, areas: np.ndarray, raw_areas: Column) -> None:
    if report.role != "val":
        return

    def describe(index: int) -> Example:
        example, value = box(index), raw_areas[index]
        text = f"area {shorten(value, 30)} of {example.text}"
        return Example(text, example.file, example.image_id, example.annotation_id, value)

    box = describer(table)
    is_missing = raw_areas.is_missing
    report.add("area_missing", np.flatnonzero(is_missing), box)
    with np.errstate(invalid="ignore", over="ignore"):
        is_bad = ~is_missing & ~((areas >= 0) & (areas <= _MAX_AREA))
        report.add("area_value", np.flatnonzero(is_bad), describe)
        of_box = table.boxes[:, 2] * table.boxes[:, 3]
        # A mask may be much smaller than its box, but not larger.
        is_odd = (areas > 1.1 * of_box + 4) | ((areas < 0.001 * of_box) & (of_box > 16))
    is_odd &= ~is_missing & ~is_bad & table.is_box & (of_box > 0)
    report.add("area_odd", np.flatnonzero(is_odd), describe)
