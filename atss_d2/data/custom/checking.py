"""Checks a data set in COCO's format; what would stop or mislead a training is left out.

Detectron2 and pycocotools take files on trust: a missing image stops the training in the middle,
a repeated annotation id at its start, an annotation with id 0 is never matched, a box of NaN turns
the losses to NaN. What can be mended without guessing is mended; what cannot is left out; both are
said. Where most of a set would have to be left out, something else is wrong, and that is an error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..categories import Categories, parse_categories
from ..download import DataError
from .images import ImageFile, inspect_images
from .reading import Source

_NUM_EXAMPLES = 3
_CLIP = 1.0  # pixels that a box may reach out of its image without a word: rounding does that


@dataclass(frozen=True)
class Finding:
    """Something odd: how often, what, up to three examples, and what was done about it."""

    count: int
    what: str
    examples: tuple[str, ...]
    action: str = ""

    def __str__(self) -> str:
        examples = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        action = f": {self.action}" if self.action else ""
        return f"{self.count} {self.what}{examples}{action}"


@dataclass
class Checked:
    """A data set that can be trained on.

    Args:
        content: COCO's dict, clean.
        source: What it was made from.
        files: The images' files by image id.
        findings: What was odd.
        is_changed: Whether ``content`` differs from the source, so that it has to be written.
    """

    content: dict[str, Any]
    source: Source
    files: dict[Any, ImageFile]
    findings: list[Finding] = field(default_factory=list)
    is_changed: bool = False

    @property
    def categories(self) -> Categories:
        """As Detectron2 orders them: by id."""
        return self.content["categories"]

    def report(
        self,
        cases: Iterable[str],
        what: str,
        action: str = "",
        *,
        changes: bool = False,
    ) -> int:
        """Adds a finding if there are cases; returns their number."""
        cases = list(cases)
        if cases:
            examples = tuple(dict.fromkeys(cases))[:_NUM_EXAMPLES]
            self.findings.append(Finding(len(cases), what, examples, action))
            self.is_changed |= changes
        return len(cases)


def check(source: Source, *, inspect: Callable = inspect_images) -> Checked:
    """Checks a data set and leaves out what cannot be used.

    Args:
        source: As it was read.
        inspect: Looks at the image files.

    Raises:
        DataError: It is not COCO's format, or too much is broken; one sentence says what.
    """
    place = source.place
    for key in ("images", "annotations", "categories"):
        if not isinstance(source.content.get(key), list):
            raise DataError(
                f"'{place}' has no list '{key}': a COCO JSON has images, annotations and categories"
            )
        if not all(isinstance(entry, dict) for entry in source.content[key]):
            raise DataError(f"'{place}': '{key}' must be a list of objects with keys")
        if not source.content[key]:
            raise DataError(f"'{place}' has no {key}: there is nothing to train on")
    try:
        categories = parse_categories(source.content["categories"], f"'{place}': categories")
    except ValueError as error:
        raise DataError(str(error)) from None
    categories.sort(key=lambda category: category["id"])
    content = {"info": {}, **source.content, "categories": categories}
    checked = Checked(content, source, {})
    checked.is_changed = source.json_file is None
    names = Counter(category["name"] for category in categories)
    checked.report(
        (f"'{name}'" for name, n in names.items() if n > 1), "class names are used by several ids"
    )
    _check_images(checked, inspect)
    _check_annotations(checked)
    return checked


def _check_images(checked: Checked, inspect: Callable) -> None:
    source, entries = checked.source, {}
    place, root = source.place, source.image_root
    doubles, nameless = [], []
    for entry in checked.content["images"]:
        if not isinstance(entry.get("file_name"), str) or not isinstance(
            entry.get("id"), int | str
        ):
            nameless.append(f"id {entry.get('id')!r}")
        elif entry["id"] in entries:
            doubles.append(f"id {entry['id']} ({entry['file_name']})")
        else:
            entries[entry["id"]] = dict(entry)
    if not entries:
        raise DataError(f"'{place}': no image has a file_name and an id")
    checked.report(nameless, "images have no file_name or no id", "left out", changes=True)
    checked.report(doubles, "images have the id of another", "left out", changes=True)

    files = dict(zip(entries, inspect([root / e["file_name"] for e in entries.values()])))
    moved = {i: root / Path(entries[i]["file_name"]).name for i in entries if files[i].problem}
    moved = {i: path for i, path in moved.items() if path.is_file() and path != files[i].path}
    checked.report(
        (f"'{entries[i]['file_name']}'" for i in moved),
        f"images are found in '{root}' itself, not where the JSON says",
        "their names are changed",
        changes=True,
    )
    for i, file in zip(moved, inspect(list(moved.values()))):
        files[i], entries[i]["file_name"] = file, file.path.name

    broken = {i: file.problem for i, file in files.items() if file.problem}
    sizeless = []
    for i, entry in entries.items():
        if i in broken:
            continue
        size = entry.get("width"), entry.get("height")
        if size == (None, None):
            entry["width"], entry["height"] = files[i].width, files[i].height
            sizeless.append(f"'{entry['file_name']}'")
        elif size != (files[i].width, files[i].height):
            broken[i] = "of another size"
    if source.json_file:
        checked.report(
            sizeless, "images have no width and height", "taken from the files", changes=True
        )
    _refuse_most(checked, entries, files, broken)
    for problem in ("missing", "unreadable", "of another size"):
        cases = []
        for i in (i for i in broken if broken[i] == problem):
            case = f"'{entries[i]['file_name']}'"
            if problem == "of another size":
                file = files[i]
                case += f" ({file.width} x {file.height}, JSON: "
                case += f"{entries[i].get('width')} x {entries[i].get('height')})"
            cases.append(case)
        checked.report(cases, f"images are {problem}", "left out", changes=True)
    checked.files = {i: file for i, file in files.items() if i not in broken}
    checked.content["images"] = [entries[i] for i in checked.files]
    seen = Counter(file.path for file in checked.files.values())
    checked.report(
        (f"'{path.name}'" for path, n in seen.items() if n > 1), "files are named by several images"
    )
    modes = Counter(file.mode for file in checked.files.values())
    deep = [f"'{f.path.name}' ({f.mode})" for f in checked.files.values() if f.mode[0] in "IF"]
    checked.report(
        deep, "images have more than 8 bits a channel", "convert them to 8 bits to choose the range"
    )
    grey = sum(modes[mode] for mode in ("1", "L", "LA"))
    if grey:
        text = "images are grey" if grey < len(checked.files) else "images, all, are grey"
        checked.findings.append(Finding(grey, text, (), "read as three equal channels"))


def _refuse_most(checked: Checked, entries: dict, files: dict, broken: dict) -> None:
    """Raises where more than half of the images cannot be used."""
    if 2 * len(broken) <= len(entries):
        return
    problem, num = Counter(broken.values()).most_common(1)[0]
    first = next(i for i in broken if broken[i] == problem)
    text = f"{num} of {len(entries)} images of '{checked.source.place}' are "
    if problem == "missing":
        text += f"missing in '{checked.source.image_root}', e.g. '{entries[first]['file_name']}': "
        raise DataError(text + "is it the right folder?")
    if problem == "unreadable":
        raise DataError(text + f"unreadable, e.g. '{files[first].path}': are they images?")
    raise DataError(
        text + f"not of the size that the JSON says, e.g. '{entries[first]['file_name']}': "
        f"{files[first].width} x {files[first].height} pixels, in the JSON "
        f"{entries[first].get('width')} x {entries[first].get('height')}; were they resized?"
    )


def _check_annotations(checked: Checked) -> None:
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
    _refuse_other_boxes(checked, sizes)
    for annotation in content["annotations"]:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if image_id not in sizes:
            if image_id not in all_ids:
                cases["image"].append(f"image_id {image_id!r}")
            continue  # else its image was left out, which has been said
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
        "image": "annotations are of images that the file does not list",
        "category": "annotations are of classes that the file does not list",
        "values": "boxes are not four finite numbers",
        "area": "boxes have no area",
        "outside": "boxes lie outside their images",
        "double": "annotations repeat another of the same class and box",
    }
    num_bad = sum(len(cases[key]) for key in left_out if key != "double")
    if 2 * num_bad > len(content["annotations"]) or not kept:
        key = max(left_out, key=lambda key: len(cases[key]))
        if cases[key]:
            raise DataError(
                f"{len(cases[key])} of {len(content['annotations'])} {left_out[key]}, e.g. "
                f"{cases[key][0]}, in '{place}': correct the file"
            )
        raise DataError(f"'{place}': no annotation belongs to an image that can be used")
    for key, what in left_out.items():
        checked.report(cases[key], what, "left out", changes=True)
    checked.report(cases["clip"], "boxes reach out of their images", "clipped", changes=True)
    checked.report(
        cases["ignore"], "annotations have the key ignore", "now iscrowd regions", changes=True
    )
    _renumber(checked, kept)
    content["annotations"] = kept


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        and all(math.isfinite(x) for x in box)
    )


def _clip(box: list[float], width: int, height: int) -> list[float] | None:
    """x y w h inside the image; the same list where it is inside; None where nothing is."""
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if x0 >= -_CLIP and y0 >= -_CLIP and x1 <= width + _CLIP and y1 <= height + _CLIP:
        return box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return [x0, y0, x1 - x0, y1 - y0] if x1 > x0 and y1 > y0 else None


def _refuse_other_boxes(checked: Checked, sizes: dict) -> None:
    """Raises where boxes are x1 y1 x2 y2, or fractions of the image, instead of x y w h pixels."""
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
    # As corners all of them fit, as sides many do not.
    fit = [x1 > x0 and y1 > y0 and x1 <= w + 1 and y1 <= h + 1 for x0, y0, x1, y1, w, h in boxes]
    out = [box for box in boxes if box[0] + box[2] > box[4] + 1 or box[1] + box[3] > box[5] + 1]
    if all(fit) and 5 * len(out) > len(boxes):
        raise DataError(
            f"'{place}': the boxes seem to be x1, y1, x2, y2, not COCO's x, y, width, height: "
            f"{len(out)} of {len(boxes)} reach out of their images, e.g. {list(out[0][:4])}; "
            "convert them"
        )


def _renumber(checked: Checked, kept: list[dict]) -> None:
    """Gives new ids where they repeat, are missing, or are 0, pycocotools' sign of no match."""
    ids = Counter(annotation.get("id") for annotation in kept)
    odd = [f"id {i}" for i, n in ids.items() if n > 1 or not isinstance(i, int) or i == 0]
    if checked.report(
        odd, "annotation ids are missing, repeated or 0", "numbered anew", changes=True
    ):
        for number, annotation in enumerate(kept, start=1):
            annotation["id"] = number


def unite_categories(train: Checked, val: Checked) -> None:
    """Gives both parts the classes of either, in place; classes without boxes are findings.

    Raises:
        DataError: An id has different names in the two.
    """
    names: dict[int, str] = {}
    for part in (train, val):
        for category in part.categories:
            name = names.setdefault(category["id"], category["name"])
            if name != category["name"]:
                raise DataError(
                    f"class id {category['id']} is '{name}' in '{train.source.place}' but "
                    f"'{category['name']}' in '{val.source.place}': give both the same categories"
                )
    categories = [{"id": i, "name": names[i]} for i in sorted(names)]
    for part in (train, val):
        if part.categories != categories:
            missing = [
                f"'{category['name']}'"
                for category in categories
                if category not in part.categories
            ]
            part.report(missing, "classes are listed in the other part only", "added", changes=True)
            part.content["categories"] = categories
    report_empty_classes(train, val)


def report_empty_classes(train: Checked, val: Checked | None = None) -> None:
    """Adds findings about classes that have no box."""
    for part, consequence in ((train, "they cannot be learned"), (val, "their AP is unknown")):
        if part is not None:
            used = {annotation["category_id"] for annotation in part.content["annotations"]}
            empty = [f"'{c['name']}'" for c in part.categories if c["id"] not in used]
            part.report(empty, "classes have no box", consequence)
