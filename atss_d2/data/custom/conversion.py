"""Converts Pascal VOC and YOLO folders to COCO's dict, using the package `supervision`.

No file is copied or written here: images stay where they are.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ..errors import DataError


def read_voc_folder(images: Path, labels: Path) -> dict[str, Any]:
    """Reads one XML file per image; classes are numbered from 1 in the order of their names.

    Raises:
        DataError: ``supervision`` is missing, or a file cannot be read.
    """
    return _read("from_pascal_voc", labels, str(images), str(labels), sort_names=True)


def read_yolo_folder(images: Path, labels: Path, names: Path | list[str]) -> dict[str, Any]:
    """Reads one text file per image; category ids are YOLO's own numbers, from 0.

    Args:
        images: Folder of the images.
        labels: Folder of the text files.
        names: The data.yaml with the class names, or the names themselves.

    Raises:
        DataError: ``supervision`` is missing, or a file cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = data_yaml = names
        if not isinstance(names, Path):
            place, data_yaml = labels, Path(folder) / "data.yaml"
            data_yaml.write_text(json.dumps({"names": [name.strip() for name in names]}))
        paths = str(images), str(labels), str(data_yaml)
        return _read("from_yolo", place, *paths, sort_names=False)


def _read(method: str, place: Path, *arguments: str, sort_names: bool) -> dict[str, Any]:
    try:
        import supervision
    except ImportError as error:
        raise DataError(
            f"Pascal VOC and YOLO folders are read by the package supervision, which is missing "
            f"({error}): pip install 'atss_d2[convert]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # supervision warns about its own deprecations
            dataset = getattr(supervision.DetectionDataset, method)(*arguments)
    except Exception as error:
        # Its parsers of XML, yaml, numbers and images raise many types.
        message = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the labels of '{place}': {message}") from None
    names = list(dataset.classes)
    order = sorted(range(len(names)), key=lambda i: names[i]) if sort_names else range(len(names))
    ids = {c: position + int(sort_names) for position, c in enumerate(order)}
    root = Path(arguments[0])
    image_entries, annotations = [], []
    for path, detections in sorted(dataset.annotations.items()):  # unsorted, in the disk's order
        image_entries.append(
            {"id": len(image_entries) + 1, "file_name": Path(path).relative_to(root).as_posix()}
        )
        if not len(detections):  # class_id may then be None
            continue
        for box, c in zip(detections.xyxy.tolist(), detections.class_id.tolist()):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(image_entries),
                    "category_id": ids[c],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {
        "images": image_entries,  # their sizes are filled in when the files are inspected
        "annotations": annotations,
        "categories": [{"id": ids[c], "name": names[c]} for c in order],
    }
