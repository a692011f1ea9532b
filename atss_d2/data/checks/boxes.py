"""Checks the boxes of a data set, all at once: what is wrong with each, and their convention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .findings import Example, Report
from .table import Table

CLIP = 1.0  # pixels that a box may extend outside its image unreported, because of rounding
# In the order in which they are found: an annotation has the first that holds.
FAULTS = (
    *("annotation_image", "annotation_category", "box_values"),
    *("box_negative", "box_zero", "box_outside"),
)
_TINY = 0.5  # pixels
_MANY = 0.2  # part of the boxes outside their images that speaks for another convention


def find_faults(table: Table) -> np.ndarray:
    """Returns (M,) index into ``FAULTS`` of what makes each annotation useless; -1 if nothing."""
    x, y, w, h = table.boxes.T
    width, height = table.sizes.T
    with np.errstate(invalid="ignore", over="ignore"):
        masks = (
            table.image_idxs < 0,
            table.classes < 0,
            ~table.is_box,
            (w < 0) | (h < 0),
            (w == 0) | (h == 0),
            # Not inside with more than a border, and nothing left after clipping.
            is_partly_outside(table) & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)),
        )
    faults = np.full(table.num_annotations, -1)
    for number, mask in reversed(list(enumerate(masks))):
        faults[mask] = number
    return faults


def is_partly_outside(table: Table) -> np.ndarray:
    """Returns (M,) whether the box extends outside its image by more than rounding."""
    x, y, w, h = table.boxes.T
    width, height = table.sizes.T
    with np.errstate(invalid="ignore", over="ignore"):
        return (x < -CLIP) | (y < -CLIP) | (x + w > width + CLIP) | (y + h > height + CLIP)


def find_doubles(table: Table, usable: np.ndarray) -> np.ndarray:
    """Returns the indices of annotations with image, class and box of an earlier usable one."""
    idxs = np.flatnonzero(usable)
    if not len(idxs):
        return idxs
    columns = (table.image_idxs[idxs], table.classes[idxs], *table.boxes[idxs].T)
    order = np.lexsort(columns)
    is_equal = np.all([np.diff(column[order]) == 0 for column in columns], axis=0)
    return np.sort(idxs[order[1:][is_equal]])


def find_convention(table: Table, areas: np.ndarray | None = None) -> tuple[str, np.ndarray]:
    """Finds out whether the boxes are something else than x, y, width, height in pixels.

    Args:
        table: The data set.
        areas: (M,) areas as the file says, NaN if unknown: they tell how boxes were meant.

    Returns:
        The code of a finding, "" if the boxes seem to be right; and indices of boxes that show it.
    """
    idxs = np.flatnonzero(table.is_box & (table.image_idxs >= 0))
    boxes, sizes = table.boxes[idxs], table.sizes[idxs]
    if not len(idxs):
        return "", idxs
    is_fraction = (boxes <= 1).all(1) & (boxes >= 0).all(1) & (boxes[:, 2:] > 0).all(1)
    is_fraction &= (sizes > 2).all(1)
    if is_fraction.all():
        return "box_fractions", idxs
    with np.errstate(invalid="ignore", over="ignore"):
        is_out = (boxes[:, :2] + boxes[:, 2:] > sizes + CLIP).any(1)
        as_corners = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= sizes + CLIP).all(1)
        half = boxes[:, 2:] / 2
        as_centers = (boxes[:, :2] - half >= -CLIP).all(1)
        as_centers &= (boxes[:, :2] + half <= sizes + CLIP).all(1)
        many = is_out.mean() > _MANY
        corner_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        box_areas = boxes[:, 2] * boxes[:, 3]
        says_corners = np.zeros(len(idxs), bool)
        if areas is not None:
            says_corners = np.isclose(areas[idxs], corner_areas, rtol=0.01, atol=1)
            says_corners &= ~np.isclose(areas[idxs], box_areas, rtol=0.01, atol=1) & as_corners
    if as_corners.all() and many:
        return "box_corners", idxs[is_out]
    if len(idxs) >= 4 and says_corners.mean() > 0.5:
        return "box_corners", idxs[says_corners]
    if as_centers.all() and many:
        return "box_centers", idxs[is_out]
    # Boxes that a border cuts reach out of the image, but rarely fit into it as corners.
    shows_corners = (is_out & as_corners) | says_corners
    if shows_corners.sum() >= max(3, 0.02 * len(idxs)):
        return "box_corners_some", idxs[shows_corners]
    if is_fraction.any():
        return "box_fractions", idxs[is_fraction]
    return "", idxs[:0]


def check_boxes(report: Report, table: Table, areas: np.ndarray | None = None) -> np.ndarray:
    """Reports the faults of boxes.

    Returns:
        (M,) whether the annotation can be used.
    """
    total = table.num_annotations
    faults = find_faults(table)
    for number, code in enumerate(FAULTS):
        idxs = np.flatnonzero(faults == number)
        report.add(code, idxs, describer(table, code), of=total, fix=_fix(table, code))
    usable = faults < 0
    describe = describer(table)
    convention, idxs = find_convention(table, areas)
    if convention:
        report.add(convention, idxs, describe, of=total)
    if convention not in ("box_corners", "box_centers"):
        report.add(
            "box_clip", np.flatnonzero(usable & is_partly_outside(table)), describe, of=total
        )
    with np.errstate(invalid="ignore"):
        is_tiny = usable & (table.boxes[:, 2:] < _TINY).any(1)
    if convention != "box_fractions":
        report.add("box_tiny", np.flatnonzero(is_tiny), describe, of=total)
    report.add("box_double", find_doubles(table, usable), describe, of=total)
    if total and table.is_crowd.all():
        report.add("crowd_only", np.arange(total), describe)
    return usable


def describer(table: Table, code: str = "") -> Callable[[int], Example]:
    """Returns a function that makes an example of an annotation's index."""

    def describe(index: int) -> Example:
        image = table.image_idxs[index]
        value = table.raw_boxes[index]
        name = table.names[image] if image >= 0 else None
        text = f"{shorten(value)} in {name_of(table, image)}"
        if code in ("annotation_image", "annotation_category"):
            key = "image_id" if code == "annotation_image" else "category_id"
            value = (table.of_image if code == "annotation_image" else table.of_class)[index]
            text = f"{key} {shorten(value)}"
        return Example(
            text,
            file=name if isinstance(name, str) else None,
            image_id=table.image_ids[image] if image >= 0 else None,
            annotation_id=table.annotation_ids[index] if table.annotation_ids else None,
            value=value,
        )

    return describe


def _fix(table: Table, code: str) -> str:
    """Returns how to fix ids whose type differs from that of the ids they refer to."""
    if code == "annotation_image":
        found, known = table.of_image, table.image_ids
    elif code == "annotation_category":
        found, known = table.of_class, table.class_ids
    else:
        return ""
    if not {str(x) for x in found[:1000]}.isdisjoint(map(str, known)):
        types = [{type(x).__name__ for x in ids[:1000]} for ids in (found, known)]
        if types[0].isdisjoint(types[1]):
            return (
                f"the ids are of type {'/'.join(sorted(types[0]))}, those that they refer to of "
                f"type {'/'.join(sorted(types[1]))}: write all as integers"
            )
    return ""


def name_of(table: Table, index: int) -> str:
    """Returns an image's name for messages."""
    name = table.names[index] if index >= 0 else None
    return f"'{name}'" if isinstance(name, str) else "an image without a name"


def shorten(value: Any, length: int = 60) -> str:
    """Returns the representation of a value, cut off if it is long."""
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
