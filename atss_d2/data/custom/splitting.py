"""Splits a data set by image, so that each class is in both parts if possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_TRIES = 20


def split_images(
    content: dict[str, Any],
    *,
    fraction: float,
    seed: int,
    groups: Sequence[Sequence[Any]] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a checked COCO dict.

    Images of the rarest classes are assigned first, in proportion, and at least one to each part if
    the class has two; the remaining images are assigned at random (iterative stratification:
    Sechidis et al., ECML 2011). The best of several random orders is used.

    Args:
        content: COCO's dict of ``images``, ``annotations`` and ``categories``.
        fraction: Fraction of images for validation, in (0, 1); each part gets at least one.
        seed: The same seed gives the same parts.
        groups: Ids of images that must stay together, such as copies of the same file.

    Returns:
        The training part and the validation part, in the order of ``content``.

    Raises:
        ValueError: There are fewer than two images (or groups), or ``fraction`` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the part for validation must be between 0 and 1, got {fraction}")
    units = _units([image["id"] for image in content["images"]], groups)
    if len(units) < 2:
        raise ValueError("a single image cannot be split: give a validation set")
    has_class = _classes_of(content, units)
    sizes = np.array([len(unit) for unit in units])
    best = None
    for attempt in range(_TRIES):
        rng = np.random.default_rng([seed, attempt])
        is_val = _split(has_class, sizes, fraction, rng)
        fault = _fault(has_class, sizes, is_val, fraction)
        if best is None or fault < best[0]:
            best = fault, is_val
        if not fault[0]:
            break
    val_ids = {i for unit, chosen in zip(units, best[1]) if chosen for i in unit}
    return _part(content, val_ids, keep=False), _part(content, val_ids, keep=True)


def _units(ids: list[Any], groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
    grouped = {i: number for number, group in enumerate(groups) for i in group}
    units: dict[Any, list[Any]] = {}
    for position, i in enumerate(ids):
        units.setdefault(("group", grouped[i]) if i in grouped else position, []).append(i)
    return list(units.values())


def _classes_of(content: dict[str, Any], units: list[list[Any]]) -> np.ndarray:
    """Returns (units, classes) bool: whether the unit has a box of the class."""
    row = {i: number for number, unit in enumerate(units) for i in unit}
    column = {category["id"]: k for k, category in enumerate(content["categories"])}
    has_class = np.zeros((len(units), len(column)), bool)
    for annotation in content["annotations"]:
        has_class[row[annotation["image_id"]], column[annotation["category_id"]]] = True
    return has_class


def _split(
    has_class: np.ndarray, sizes: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns (units,) bool: whether the unit is for validation."""
    num_units = len(has_class)
    is_val, is_free = np.zeros(num_units, bool), np.ones(num_units, bool)
    counts = has_class.sum(0)  # (classes,)
    wanted = np.where(counts > 1, np.clip(np.rint(fraction * counts), 1, counts - 1), 0)
    while True:
        left = has_class[is_free].sum(0)
        if not left.any():
            break
        k = int(np.where(left > 0, left, num_units + 1).argmin())  # class with fewest units left
        mine = rng.permutation(np.flatnonzero(is_free & has_class[:, k]))
        lacking = int(wanted[k] - (is_val & has_class[:, k]).sum())
        is_val[mine[: max(lacking, 0)]] = True
        is_free[mine] = False
    # Images without boxes fill up the validation part.
    rest = rng.permutation(np.flatnonzero(is_free))
    target = fraction * sizes.sum()
    for unit in rest:
        if sizes[is_val].sum() + sizes[unit] / 2 > target:
            break
        is_val[unit] = True
    if not is_val.any():
        is_val[rng.integers(num_units)] = True
    if is_val.all():
        is_val[rng.integers(num_units)] = False
    return is_val


def _fault(
    has_class: np.ndarray, sizes: np.ndarray, is_val: np.ndarray, fraction: float
) -> tuple[int, float]:
    """Returns how many classes are in one part but could be in both, and the error of the size."""
    in_val, in_train = has_class[is_val].any(0), has_class[~is_val].any(0)
    could = has_class.sum(0) > 1
    return int((could & ~(in_val & in_train)).sum()), abs(
        float(sizes[is_val].sum() / sizes.sum()) - fraction
    )


def _part(content: dict[str, Any], val_ids: set, *, keep: bool) -> dict[str, Any]:
    return {
        **content,
        "images": [image for image in content["images"] if (image["id"] in val_ids) == keep],
        "annotations": [a for a in content["annotations"] if (a["image_id"] in val_ids) == keep],
    }
