"""Checks the annotations of a data set in COCO format."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ..errors import DataError
from .checked import Checked, Finding

_CLIP = 1.0  # pixels that a box may extend outside its image unreported, because of rounding


def check_annotations(checked: Checked) -> None:
    """Drops unusable annotations, clips boxes and adds keys that pycocotools needs, in place.

    Args:
        checked: The data set, with checked images.

    Raises:
        DataError: Most annotations cannot be used, or the boxes are not in COCO's format.
    """
    place, content = checked.source.place, checked.content
    all_ids = {entry.get("id") for entry in checked.source.content["images"]}
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
    names = {entry["id"]: f"'{entry['file_name']}'" for entry in content["images"]}
    known = {category["id"] for category in content["categories"]}
    cases: dict[str, list[str]] = {
        key: []
        for key in ("image", "category", "values", "area", "outside", "clip", "double", "ignore")
    }
    kept, seen = [], set()
    _box_polygons(checked)
    _refuse_other_boxes(checked, sizes)
    for annotation in content["annotations"]:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if image_id not in sizes:
            if image_id not in all_ids:
                cases["image"].append(f"image_id {image_id!r}")
            continue  # otherwise its image was left out, which is already reported
        box = annotation.get("bbox")
        if category_id not in known:
            cases["category"].append(f"category_id {category_id!r}")
        elif not _is_box(box):
            cases["values"].append(f"{box!r} in {names[image_id]}")
        elif box[2] <= 0 or box[3] <= 0:
            cases["area"].append(f"{box!r} in {names[image_id]}")
        else:
            clipped = _clip(box, *sizes[image_id])
            if clipped is None:
                cases["outside"].append(f"{box!r} in {names[image_id]}")
                continue
            new = {"iscrowd": 0, "area": box[2] * box[3], **annotation}
            if clipped != box:
                cases["clip"].append(f"{box!r} in {names[image_id]}")
                new.update(bbox=clipped, area=min(new["area"], clipped[2] * clipped[3]))
            if new.pop("ignore", 0):
                cases["ignore"].append(names[image_id])
                new["iscrowd"] = 1
            key = (image_id, category_id, *clipped)
            if key in seen:
                cases["double"].append(f"{box!r} in {names[image_id]}")
                continue
            seen.add(key)
            checked.is_changed |= new != annotation
            kept.append(new)
    left_out = {
        "image": "annotation{s} {are} of images that the file does not list",
        "category": "annotation{s} {are} of classes that the file does not list",
        "values": "box{es} {are} not four finite numbers",
        "area": "box{es} {have} no area",
        "outside": "box{es} {are} outside of the image",
        "double": "annotation{s} {have} the class and box of another",
    }
    num_bad = sum(len(cases[key]) for key in left_out if key != "double")
    if 2 * num_bad > len(content["annotations"]) or not kept:
        key = max(left_out, key=lambda key: len(cases[key]))
        if cases[key]:
            raise DataError(
                f"'{place}': {len(cases[key])} of {len(content['annotations'])} annotations "
                f"cannot be used: {Finding(2, left_out[key], ()).phrase}, e.g. {cases[key][0]}"
            )
        raise DataError(f"'{place}': no annotation belongs to an image that can be used")
    if all(annotation["iscrowd"] for annotation in kept):
        raise DataError(
            f"'{place}': all {len(kept)} annotations are iscrowd regions, which are not objects: "
            "set iscrowd to 0 where single objects are meant"
        )
    for key, what in left_out.items():
        checked.report(cases[key], what, "left out", changes=True)
    checked.report(
        cases["clip"], "box{es} {are} partly outside of the image", "clipped", changes=True
    )
    checked.report(
        cases["ignore"], "annotation{s} {have} the key ignore", "now iscrowd regions", changes=True
    )
    _renumber(checked, kept)
    content["annotations"] = kept


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


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        and all(math.isfinite(x) for x in box)
    )


def _clip(box: list[float], width: int, height: int) -> list[float] | None:
    """Clips x y w h to the image; returns the same list if it is inside, None if outside."""
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if x0 >= -_CLIP and y0 >= -_CLIP and x1 <= width + _CLIP and y1 <= height + _CLIP:
        return box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return [x0, y0, x1 - x0, y1 - y0] if x1 > x0 and y1 > y0 else None


def _refuse_other_boxes(checked: Checked, sizes: dict) -> None:
    """Raises if boxes are x1 y1 x2 y2, or fractions of the image, instead of x y w h in pixels."""
    place = checked.source.place
    boxes = [
        (*annotation["bbox"], *sizes[annotation["image_id"]])
        for annotation in checked.content["annotations"]
        if annotation.get("image_id") in sizes and _is_box(annotation.get("bbox"))
    ]
    if not boxes:
        return
    if all(max(box[:4]) <= 1 for box in boxes):
        raise DataError(
            f"'{place}': all {len(boxes)} boxes have values up to 1, such as {list(boxes[0][:4])}: "
            "COCO's are x, y, width and height in pixels"
        )
    # Read as corners, all boxes fit into their images; read as sides, many do not.
    fit = [x1 > x0 and y1 > y0 and x1 <= w + 1 and y1 <= h + 1 for x0, y0, x1, y1, w, h in boxes]
    out = [box for box in boxes if box[0] + box[2] > box[4] + 1 or box[1] + box[3] > box[5] + 1]
    if all(fit) and 5 * len(out) > len(boxes):
        raise DataError(
            f"'{place}': the boxes seem to be x1, y1, x2, y2, not COCO's x, y, width, height: "
            f"{len(out)} of {len(boxes)} reach out of their images, e.g. {list(out[0][:4])}; "
            "convert them"
        )


def _renumber(checked: Checked, kept: list[dict]) -> None:
    """Renumbers all ids if any is repeated, missing, or 0, which pycocotools reads as no match."""
    ids = Counter(annotation.get("id") for annotation in kept)
    odd = [f"id {i}" for i, n in ids.items() if n > 1 or not isinstance(i, int) or i == 0]
    if checked.report(
        odd, "annotation id{s} {are} missing, repeated or 0", "all are numbered anew", changes=True
    ):
        for number, annotation in enumerate(kept, start=1):
            annotation["id"] = number
