"""Checks the structure of COCO's dict: its lists, ids, sizes and the keys that readers need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..categories import parse_categories
from ..errors import DataError
from .boxes import check_boxes, describer, name_of, shorten
from .findings import Example, Report
from .json_file import KEYS
from .table import Table, is_hashable, table_of_coco, to_numbers

_NONE = object()
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


def check_content(report: Report, content: dict[str, Any]) -> Table:
    """Reports everything that is wrong in COCO's dict, except for the image files.

    Args:
        report: Takes the findings.
        content: COCO's dict, of which :func:`require_lists` is true. It is not changed.

    Returns:
        The columns of the data set.
    """
    images, annotations, categories = (content[key] for key in KEYS)
    table = table_of_coco(images, annotations, categories)
    report.counts.update({key: len(content[key]) for key in KEYS})
    _check_categories(report, categories)
    _check_images(report, table)
    areas = to_numbers([a.get("area") for a in annotations])
    usable = check_boxes(report, table, areas)
    _check_annotation_ids(report, table)
    _check_references(report, table, annotations)
    _check_keys(report, table, annotations)
    _check_areas(report, table, areas, annotations)
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
    report.add("image_id_double", _doubles(ids), describe)
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


def _doubles(ids: Sequence[Any]) -> list[int]:
    """Returns indices of ids that an earlier entry has; those that cannot be ids are left out."""
    seen, found = set(), []
    for i, x in enumerate(ids):
        if x is None or not is_hashable(x):
            continue
        if x in seen:
            found.append(i)
        seen.add(x)
    return found


def _check_annotation_ids(report: Report, table: Table) -> None:
    ids = table.annotation_ids or []
    describe = _describe_id(table)
    doubles = [] if len(ids) == len(_set_of(ids)) else _doubles(ids)
    report.add("annotation_id_double", doubles, describe)
    if set(map(type, ids)) <= {int} and max(map(abs, ids), default=0) < 2**53:
        report.add("annotation_id_zero", [i for i, x in enumerate(ids) if x == 0], describe)
        return
    kinds = list(map(_kind_of_id, ids))
    missing = [i for i, x in enumerate(ids) if not is_hashable(x) or x is None or x != x]
    report.add("annotation_id_missing", missing, describe)
    left = set(missing)
    wrong = [i for i, kind in enumerate(kinds) if kind in ("text", "odd") and i not in left]
    report.add("annotation_id_type", wrong, describe)
    zeros = [i for i, x in enumerate(ids) if kinds[i] == "integer" and x == 0]
    report.add("annotation_id_zero", zeros, describe)


def _set_of(ids: Sequence[Any]) -> set:
    try:
        return set(ids)
    except TypeError:
        return set()


def _check_references(report: Report, table: Table, annotations: Sequence[dict]) -> None:
    wrong = [
        i
        for i, a in enumerate(annotations)
        if "image_id" not in a or not is_hashable(a["image_id"])
    ]
    report.add("annotation_image_id", wrong, describer(table, "annotation_image"))


def _describe_id(table: Table) -> Callable[[int], Example]:
    box = describer(table)

    def describe(index: int) -> Example:
        value, example = table.annotation_ids[index], box(index)
        return Example(f"id {shorten(value)}", example.file, example.image_id, value, value)

    return describe


def _check_keys(report: Report, table: Table, annotations: Sequence[dict]) -> None:
    """Checks ``iscrowd``, ``ignore`` and ``segmentation``."""
    describe_box = describer(table)

    def describer_of(key: str) -> Callable[[int], Example]:
        def describe(index: int) -> Example:
            example, value = describe_box(index), annotations[index].get(key)
            text = f"{shorten(value, 30)} in {name_of(table, table.image_idxs[index])}"
            return Example(text, example.file, example.image_id, example.annotation_id, value)

        return describe

    crowd = [a.get("iscrowd", _NONE) for a in annotations]
    if not set(map(type, crowd)) <= {int} or not set(crowd) <= {0, 1}:
        is_number = [isinstance(x, int | float) for x in crowd]
        missing = [i for i, x in enumerate(crowd) if x is _NONE]
        report.add("crowd_missing", missing, describe_box)
        odd = [
            i
            for i, x in enumerate(crowd)
            if x is not _NONE and (not is_number[i] or x not in (0, 1))
        ]
        report.add("crowd_value", odd, describer_of("iscrowd"))
    # As Detectron2 tests it.
    ignored = [i for i, a in enumerate(annotations) if "ignore" in a and a["ignore"] != 0]
    report.add("ignore", ignored, describer_of("ignore"))
    points = [
        i
        for i, a in enumerate(annotations)
        if a.get("keypoints") and not _is_numbers(a["keypoints"])
    ]
    report.add("keypoints", points, describer_of("keypoints"))
    odd, short = [], []
    for i, a in enumerate(annotations):
        polygons = a.get("segmentation")
        if not polygons:
            continue
        if isinstance(polygons, dict):
            if not {"counts", "size"} <= set(polygons):
                odd.append(i)
        elif not isinstance(polygons, list) or not all(isinstance(x, list) for x in polygons):
            odd.append(i)
        elif all(len(x) < 6 or len(x) % 2 for x in polygons):
            short.append(i)
    report.add("segmentation", odd, describer_of("segmentation"))
    report.add("segmentation_short", short, describer_of("segmentation"), of=len(annotations))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int | float) for x in value)


def _check_areas(
    report: Report, table: Table, areas: np.ndarray, annotations: Sequence[dict]
) -> None:
    if report.role != "val":
        return

    def describe(index: int) -> Example:
        example, value = box(index), annotations[index].get("area")
        text = f"area {shorten(value, 30)} of {example.text}"
        return Example(text, example.file, example.image_id, example.annotation_id, value)

    box = describer(table)
    is_missing = np.array(["area" not in a for a in annotations], bool)
    report.add("area_missing", np.flatnonzero(is_missing), box)
    with np.errstate(invalid="ignore", over="ignore"):
        is_bad = ~is_missing & ~((areas >= 0) & (areas <= _MAX_AREA))
        report.add("area_value", np.flatnonzero(is_bad), describe)
        of_box = table.boxes[:, 2] * table.boxes[:, 3]
        # A mask may be much smaller than its box, but not larger.
        is_odd = (areas > 1.1 * of_box + 4) | ((areas < 0.001 * of_box) & (of_box > 16))
    is_odd &= ~is_missing & ~is_bad & table.is_box & (of_box > 0)
    report.add("area_odd", np.flatnonzero(is_odd), describe)
