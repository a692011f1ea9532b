"""Checks a data set in COCO format, and leaves out what would stop or mislead training.

Detectron2 and pycocotools trust their files: a missing image stops training midway, a repeated
annotation id stops it at the start, an annotation with id 0 is never matched, and a NaN box makes
the losses NaN. Problems that can be fixed without guessing are fixed, the rest is left out, and
both are reported. If most of a data set would have to be left out, something else is wrong, which
is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from ..categories import parse_categories
from ..checks.structure import require_lists
from ..errors import DataError
from .annotation_checks import check_annotations
from .checked import Checked
from .image_checks import check_images
from .images import group_equal_files, inspect_images
from .reading import Source


def check(source: Source, *, inspect: Callable = inspect_images) -> Checked:
    """Checks a data set and leaves out what cannot be used.

    Args:
        source: The data set as it was read.
        inspect: Inspects the image files.

    Raises:
        DataError: The data set is not in COCO format, or too much of it is broken.
    """
    place = source.place
    require_lists(source.content, f"'{place}'")
    try:
        categories = parse_categories(source.content["categories"], f"'{place}': categories")
    except ValueError as error:
        raise DataError(str(error)) from None
    categories.sort(key=lambda category: category["id"])
    content = {"info": {}, **source.content, "categories": categories}
    checked = Checked(content, source, {})
    checked.is_changed = source.json_file is None
    names = Counter(category["name"] for category in categories)
    checked.report((f"'{name}'" for name, n in names.items() if n > 1), "category_name_double")
    if source.has_byte_order_mark:
        checked.report([f"'{place}'"], "byte_order_mark", "written without it", changes=True)
    check_images(checked, inspect)
    check_annotations(checked)
    return checked


def unite_categories(train: Checked, val: Checked) -> None:
    """Gives both parts the classes of either, in place, and reports classes without boxes.

    Raises:
        DataError: An id has different names in the two parts.
    """
    _adopt_ids(train, val)
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
            missing = [f"'{c['name']}'" for c in categories if c not in part.categories]
            part.report(
                missing, "class{es} {are} listed in the other part only", "added", changes=True
            )
            part.content["categories"] = categories
    report_empty_classes(train, val)


def _adopt_ids(*parts: Checked) -> None:
    """Gives the classes of Pascal VOC parts, which only have names, the same ids in both parts."""
    named = [part for part in parts if part.source.format == "Pascal VOC"]
    numbered = [part for part in parts if part.source.format != "Pascal VOC"]
    ids = {c["name"]: c["id"] for part in numbered for c in part.categories}
    new = {c["name"] for part in named for c in part.categories} - set(ids)
    first = max(ids.values(), default=0) + 1
    ids.update({name: first + i for i, name in enumerate(sorted(new))})
    for part in named:
        changed = {category["id"]: ids[category["name"]] for category in part.categories}
        categories = [{**c, "id": ids[c["name"]]} for c in part.categories]
        part.content["categories"] = sorted(categories, key=lambda category: category["id"])
        for annotation in part.content["annotations"]:
            annotation["category_id"] = changed[annotation["category_id"]]


def report_empty_classes(train: Checked, val: Checked | None = None) -> None:
    """Adds findings about classes without boxes."""
    for part, consequence in ((train, "not to be learned"), (val, "without an AP")):
        if part is not None:
            annotations = part.content["annotations"]
            used = {a["category_id"] for a in annotations if not a["iscrowd"]}
            empty = [f"'{c['name']}'" for c in part.categories if c["id"] not in used]
            part.report(empty, "category_empty", consequence)


def report_shared_images(train: Checked, val: Checked) -> None:
    """Adds a finding about images whose content is in both parts."""
    val_files = {id(file) for file in val.files.values()}
    cases = []
    for group in group_equal_files([*train.files.values(), *val.files.values()]):
        in_val = [file for file in group if id(file) in val_files]
        in_train = [file for file in group if id(file) not in val_files]
        if in_val and in_train:
            cases += [f"'{file.path.name}'" for file in in_val]
    val.report(cases, "shared", "AP will look better than it is")


def divide(checked: Checked, train: dict[str, Any], val: dict[str, Any]) -> tuple[Checked, Checked]:
    """Returns the two parts of a split data set; its findings stay with the first."""
    parts = []
    for content in (train, val):
        files = {image["id"]: checked.files[image["id"]] for image in content["images"]}
        parts.append(Checked(content, checked.source, files, is_changed=True))
    parts[0].findings += checked.findings
    return parts[0], parts[1]
