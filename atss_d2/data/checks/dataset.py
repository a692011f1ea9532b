"""Checks one data set, from its annotations to its files, and sets against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..categories import Categories, parse_categories
from ..errors import DataError
from ..json_stream import Unusual
from .boxes import check_boxes
from .cache import ResultCache
from .columns import Annotations, Content, Images
from .copies import check_copies, check_shared
from .findings import Example, Finding, Report
from .images import check_files
from .json_file import JsonContent, read_columns, read_json, require_small
from .probe import Probe
from .probing import probe_files
from .structure import check_content, require_lists
from .table import Table, table_of_dicts


@dataclass
class DataSet:
    """A checked data set.

    Args:
        report: What was found.
        json_file: The COCO JSON; None for other formats.
        image_root: The folder that names are relative to; None if they are paths.
        names: N names of image files.
        image_ids: N ids.
        sizes: (N, 2) width and height as the data set says; NaN if unknown.
        categories: The classes; ``[]`` if unknown.
        probes: N results of looking at the files; ``[]`` before that.
    """

    report: Report
    json_file: str | None = None
    image_root: str | None = None
    names: list[str] = field(default_factory=list)
    image_ids: list[Any] = field(default_factory=list)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    categories: Categories = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """N paths of the files."""
        if self.image_root is None:
            return self.names
        return [os.path.join(self.image_root, name) for name in self.names]

    def look_at_files(self, *, full: bool = False, cache: bool = True) -> None:
        """Looks at the image files and reports what is odd about them.

        Args:
            full: Decode all pixels.
            cache: Remember the result in the user's cache folder.
        """
        names = {
            "full": full,
            "cache": cache,
            "root": self.image_root,
            "what": f"Looking at images of {os.path.basename(self.report.place)}",
        }
        paths = self.paths
        self.probes = probe_files(paths, **names)
        check_files(
            self.report,
            self.names,
            self.probes,
            sizes=self.sizes,
            image_ids=self.image_ids,
            root=self.image_root,
        )
        check_copies(self.report, self.names, paths, self.probes)

    def _take(self, table: Table) -> None:
        """Takes the images of a table whose names are names of local files."""
        # Names with a protocol are read by Detectron2's PathManager, from anywhere.
        chosen = [
            i
            for i, name in enumerate(table.names)
            if isinstance(name, str) and name and "://" not in (self.image_root or name)
        ]
        self.names = [table.names[i] for i in chosen]
        self.image_ids = [table.image_ids[i] for i in chosen]
        sizes = np.stack([table.widths, table.heights], 1)
        self.sizes = [tuple(size) for size in sizes[chosen].tolist()]


def check_coco_file(
    json_file: str, image_root: str, *, role: str = "train", cache: bool = True
) -> DataSet:
    """Checks a COCO JSON, without its image files.

    Args:
        json_file: The file.
        image_root: Folder of its images.
        role: "train" or "val".
        cache: Remember the result in the user's cache folder, and use it if the file is unchanged.

    Returns:
        The data set. A file that is not COCO's has no images and one finding, an error.
    """
    remembered = ResultCache(json_file, role) if cache else None
    result = remembered.read() if remembered else None
    if result is not None:
        try:
            return _from_json(result, json_file, image_root)
        except (KeyError, TypeError, ValueError):  # damaged
            pass
    try:
        content = _read(str(json_file))
    except DataError as error:
        report = Report(str(json_file), role)
        report.say("json", str(error))
        return DataSet(report, str(json_file), str(image_root))
    dataset = check_coco(content, str(json_file), str(image_root), role=role)
    if remembered:
        remembered.write(_to_json(dataset))
    return dataset


def _read(json_file: str) -> JsonContent:
    try:
        return read_columns(json_file)
    except Unusual as error:
        require_small(json_file, error)
    return read_json(json_file)  # which has better words


def check_coco(
    content: JsonContent,
    json_file: str | None,
    image_root: str,
    *,
    role: str = "train",
    place: str = "",
) -> DataSet:
    """Checks the content of a COCO JSON, without its image files.

    Args:
        content: The content, which is not changed.
        json_file: Where it was read from; None if it was converted from another format.
        image_root: Folder of its images.
        role: "train" or "val".
        place: Name of the data set in the report; by default that of the file or folder.
    """
    report = Report(place or json_file or image_root, role)
    dataset = DataSet(report, json_file, image_root)
    if content.has_byte_order_mark:
        report.add("byte_order_mark", [json_file], lambda path: Example(f"'{path}'"))
    if content.num_nan:
        report.add("nan_literal", range(content.num_nan), lambda _: Example("NaN"))
    lists = content.content
    if not isinstance(lists, Content):
        try:
            require_lists(lists, f"'{report.place}'")
        except DataError as error:
            report.say("json", str(error))
            return dataset
        images, annotations = Images(lists["images"]), Annotations(lists["annotations"])
        lists = Content(images, annotations, lists["categories"])
    table = check_content(report, lists)
    if json_file is None:  # what a conversion leaves out is filled in when it is written
        filled = ("image_size_missing",)
        report.findings = [x for x in report.findings if x.code not in filled]
    dataset._take(table)
    try:
        dataset.categories = parse_categories(lists.categories)
        dataset.categories.sort(key=lambda category: category["id"])
    except (ValueError, TypeError):
        pass  # reported
    return dataset


def check_dicts(
    dicts: Sequence[Any], place: str, *, role: str = "train", num_classes: int | None = None
) -> DataSet:
    """Checks dicts in Detectron2's format, without their image files.

    Args:
        dicts: One dict an image. Entries of other types, and dicts without boxes, are not checked.
        place: Name of the data set.
        role: "train" or "val".
        num_classes: Number of classes; None if unknown.
    """
    report = Report(place, role)
    dataset = DataSet(report)
    dicts = [x for x in dicts if isinstance(x, dict)]
    report.counts["images"] = len(dicts)
    if not all(_has_annotations(x) for x in dicts):
        report.say("loading", f"'{place}' has annotations that are not lists of dicts")
        return dataset
    table = table_of_dicts(dicts, num_classes)
    report.counts["annotations"] = table.num_annotations
    check_boxes(report, table)
    dataset._take(table)
    return dataset


def _has_annotations(x: dict) -> bool:
    annotations = x.get("annotations") or ()
    return isinstance(annotations, list | tuple) and all(isinstance(a, dict) for a in annotations)


def check_together(train: DataSet, *others: DataSet) -> None:
    """Reports images of validation sets that are trained on, and other classes than in training."""
    for val in others:
        if train.probes and val.probes:
            check_shared(val.report, train.paths, train.probes, val.names, val.paths, val.probes)
        if train.categories and val.categories:
            difference = compare_categories(
                f"'{train.report.place}'",
                train.categories,
                f"'{val.report.place}'",
                val.categories,
            )
            if difference:
                val.report.say("categories_differ", difference)


def compare_categories(first: str, one: Categories, second: str, other: Categories) -> str:
    """Returns a sentence about the difference of two lists of classes; "" if they agree.

    Ids may differ, as Detectron2 maps the sorted ids of each file to 0..K-1.
    """
    if len(one) != len(other):
        return (
            f"{first} has {count_classes(one)} ({some_names(one)}), but {second} has "
            f"{len(other)} ({some_names(other)}): both must list the same categories, also "
            "those without a box"
        )
    for index, (x, y) in enumerate(zip(one, other)):
        if x["name"].strip().casefold() != y["name"].strip().casefold():
            return (
                f"class {index} is '{x['name']}' (id {x['id']}) in {first}, but '{y['name']}' "
                f"(id {y['id']}) in {second}: both must list the same categories in the same "
                "order of ids"
            )
    return ""


def count_classes(categories: Sequence) -> str:
    """Returns "1 class" or "2 classes"."""
    return f"{len(categories)} class{'es' if len(categories) != 1 else ''}"


def some_names(categories: Categories) -> str:
    """Returns the first names."""
    names = [category["name"] for category in categories]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _to_json(dataset: DataSet) -> dict[str, Any]:
    report = dataset.report
    return {
        "role": report.role,
        "counts": report.counts,
        "findings": [asdict(finding) for finding in report.findings],
        "names": dataset.names,
        "image_ids": dataset.image_ids,
        "sizes": dataset.sizes,
        "categories": dataset.categories,
    }


def _from_json(result: dict[str, Any], json_file: str, image_root: str) -> DataSet:
    findings = []
    for x in result["findings"]:
        examples = tuple(Example(**example) for example in x["examples"])
        findings.append(Finding(**{**x, "examples": examples}))
    report = Report(str(json_file), result["role"], dict(result["counts"]), findings)
    sizes = [tuple(size) for size in result["sizes"]]
    ids, names = list(result["image_ids"]), list(map(str, result["names"]))
    return DataSet(
        report, str(json_file), str(image_root), names, ids, sizes, list(result["categories"])
    )
