"""Checks the annotations of a data set in COCO format."""

from __future__ import annotations

import math
from collections import Counter

from ..checks.boxes import (
    FAULTS,
    describer,
    find_convention,
    find_faults,
    is_partly_outside,
)
from ..checks.columns import Annotations, Images
from ..checks.findings import KINDS, Example, inflect
from ..checks.table import Table, table_of_coco
from ..checks.values import is_hashable, to_numbers
from ..errors import DataError
from .checked import Checked


def check_annotations(checked: Checked) -> None:
    """Drops unusable annotations, clips boxes and adds keys that pycocotools needs, in place.

    Args:
        checked: The data set, with checked images.

    Raises:
        DataError: Most annotations cannot be used, or the boxes are not in COCO's format.
    """
    place, content = checked.source.place, checked.content
    listed = {x for x in (e.get("id") for e in checked.source.content["images"]) if is_hashable(x)}
    _box_polygons(checked)
    annotations = content["annotations"]
    table = table_of_coco(
        Images(content["images"]), Annotations(annotations), content["categories"]
    )
    _refuse_other_boxes(checked, table)
    faults = find_faults(table)
    is_partly_out = is_partly_outside(table)
    cases: dict[str, list[Example]] = {code: [] for code in (*FAULTS, "box_clip", "ignore")}
    cases["box_double"] = []
    kept, seen = [], set()
    for i, annotation in enumerate(annotations):
        code = FAULTS[faults[i]] if faults[i] >= 0 else ""
        if code == "annotation_image":
            image_id = annotation.get("image_id")
            if is_hashable(image_id) and image_id in listed:
                continue  # its image was left out, which is already reported
        if code:
            cases[code].append(describer(table, code)(i))
            continue
        box, image_id = annotation["bbox"], annotation["image_id"]
        example = describer(table)(i)
        new = {"iscrowd": 0, **annotation}
        if not isinstance(new.get("area"), int | float) or not new["area"] >= 0:
            new["area"] = box[2] * box[3]
        if new["iscrowd"] not in (0, 1):
            new["iscrowd"] = int(new["iscrowd"] not in ("0", None))
        if is_partly_out[i]:
            cases["box_clip"].append(example)
            index = table.image_idxs[i]
            new["bbox"] = clip(box, table.widths[index], table.heights[index])
            new["area"] = min(new["area"], new["bbox"][2] * new["bbox"][3])
        if new.pop("ignore", 0):
            cases["ignore"].append(example)
            new["iscrowd"] = 1
        key = (image_id, annotation["category_id"], *new["bbox"])
        if key in seen:
            cases["box_double"].append(example)
            continue
        seen.add(key)
        checked.is_changed |= new != annotation
        kept.append(new)
    num_bad = sum(len(cases[code]) for code in FAULTS)
    if 2 * num_bad > len(annotations) or not kept:
        code = max(FAULTS, key=lambda code: len(cases[code]))
        if cases[code]:
            what = inflect(KINDS[code].what, 2)
            raise DataError(
                f"'{place}': {len(cases[code])} of {len(annotations)} annotations cannot be used: "
                f"{what}, e.g. {cases[code][0]}"
            )
        raise DataError(f"'{place}': no annotation belongs to an image that can be used")
    if all(annotation["iscrowd"] for annotation in kept):
        raise DataError(
            f"'{place}': all {len(kept)} annotations are iscrowd regions, which are not objects: "
            "set iscrowd to 0 where single objects are meant"
        )
    for code in (*FAULTS, "box_double"):
        checked.report(cases[code], code, "left out", changes=True)
    checked.report(cases["box_clip"], "box_clip", "clipped", changes=True)
    checked.report(cases["ignore"], "ignore", "now iscrowd regions", changes=True)
    _renumber(checked, kept)
    content["annotations"] = kept


def clip(box: list[float], width: float, height: float) -> list[float]:
    """Clips x y w h to the image, whose size consists of whole pixels."""
    x0, y0 = max(box[0], 0), max(box[1], 0)
    x1, y1 = min(box[0] + box[2], int(width)), min(box[1] + box[3], int(height))
    return [x0, y0, x1 - x0, y1 - y0]


def _box_polygons(checked: Checked) -> None:
    """Adds the enclosing box to annotations that have polygons but no box, in place."""
    annotations = checked.content["annotations"]
    boxed = []
    for i, annotation in enumerate(annotations):
        polygons = annotation.get("segmentation")
        if annotation.get("bbox") or not isinstance(polygons, list):
            continue
        rings = [ring for ring in polygons if isinstance(ring, list) and len(ring) % 2 == 0]
        values = [x for ring in rings for x in ring]
        if not values or len(rings) < len(polygons):
            continue
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in values):
            continue
        xs, ys = values[::2], values[1::2]  # every ring has an even length
        if not boxed:  # the source's list must not change
            annotations = checked.content["annotations"] = list(annotations)
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        annotations[i] = {**annotation, "bbox": box}
        boxed.append(f"id {annotation.get('id')}")
    checked.report(
        boxed,
        "annotation{s} {have} polygons but no box",
        "their box is the one around the polygons",
        changes=True,
    )


def _refuse_other_boxes(checked: Checked, table: Table) -> None:
    """Raises if boxes are x1 y1 x2 y2, or fractions of the image, instead of x y w h in pixels."""
    areas = to_numbers([a.get("area") for a in checked.content["annotations"]])
    code, idxs = find_convention(table, areas)
    num = int((table.is_box & (table.image_idxs >= 0)).sum())
    if code in ("box_corners", "box_centers") or (code == "box_fractions" and len(idxs) == num):
        kind = KINDS[code]
        raise DataError(
            f"'{checked.source.place}': {len(idxs)} of {num} {inflect(kind.what, 2)}, e.g. "
            f"{describer(table)(idxs[0])}: {kind.fix}"
        )
    if code:
        checked.report(map(describer(table), idxs), code)


def _renumber(checked: Checked, kept: list[dict]) -> None:
    """Renumbers all ids if any is repeated, missing, or 0, which pycocotools reads as no match."""
    ids = Counter(repr(annotation.get("id")) for annotation in kept)
    odd = [f"id {i}" for i, n in ids.items() if n > 1 or not i.lstrip("-").isdigit() or i == "0"]
    if checked.report(
        odd, "annotation id{s} {are} missing, repeated or 0", "all are numbered anew", changes=True
    ):
        for number, annotation in enumerate(kept, start=1):
            annotation["id"] = number
