"""Reads COCO's JSON piece by piece: what a box detector needs of it, in columns.

``load_coco_json`` of Detectron2 first holds the whole file as Python objects, segmentations
included: nearly 4 GB for COCO. Here only the boxes stay, 45 bytes each.

Shapes: M annotations.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import pycocotools.mask
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .checks.json_file import KEYS
from .json_stream import JsonStream, Unusual, read_arrays

logger = logging.getLogger(__name__)

_NO_BOX, _NO_FLAG = 16, -1  # in the columns: the annotation lacks the key
# For each coordinate whether it is an int: the mapper makes other tensors of ints than of floats.
_INTS = {
    types: sum((kind is int) << i for i, kind in enumerate(types))
    for types in itertools.product((int, float), repeat=4)
}


def load_coco_boxes(json_file: str, image_root: str, dataset_name: str) -> list[dict]:
    """Loads like Detectron2's ``load_coco_json``, but without segmentations and keypoints.

    A file with unusual content is left to ``load_coco_json``, whose errors and warnings are then
    those that people know: keypoints, ids that are not unique integers, boxes without four numbers.

    Args:
        json_file: File in COCO's format.
        image_root: Folder that the images' ``file_name`` is relative to.
        dataset_name: Name of the data set; its metadata gets the categories.

    Returns:
        Detectron2's dicts, with ``annotations`` that make their dicts each time they are asked for.
    """
    try:
        return _read(json_file, image_root, dataset_name)
    except Exception as error:  # whatever it is, load_coco_json has the better words
        logger.debug(f"{json_file} is read by load_coco_json ({type(error).__name__}: {error})")
        return load_coco_json(json_file, image_root, dataset_name)


class _Columns(NamedTuple):
    """Annotations, those of an image one after the other."""

    boxes: np.ndarray  # (M, 4) float64
    ints: np.ndarray  # (M,) uint8, bit i: coordinate i is an int; or _NO_BOX
    flags: np.ndarray  # (M,) int8, iscrowd or _NO_FLAG
    classes: np.ndarray  # (M,) int64, from 0


class Annotations(Sequence):
    """The annotations of one image, a list of dicts that are made when they are asked for."""

    __slots__ = ("_columns", "_rows")

    def __init__(self, columns: _Columns, rows: slice) -> None:
        self._columns, self._rows = columns, rows

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    def __iter__(self) -> Iterator[dict]:
        columns = [column[self._rows].tolist() for column in self._columns]
        for box, ints, flag, label in zip(*columns):
            annotation: dict[str, Any] = {} if flag == _NO_FLAG else {"iscrowd": flag}
            if ints == 0:
                annotation["bbox"] = box
            elif ints != _NO_BOX:
                annotation["bbox"] = [int(x) if ints >> i & 1 else x for i, x in enumerate(box)]
            annotation["category_id"] = label
            annotation["bbox_mode"] = BoxMode.XYWH_ABS
            yield annotation

    def __getitem__(self, index):
        return list(self)[index]


class _Reader:
    """Collects images, categories and the columns of the annotations of a file."""

    def __init__(self) -> None:
        self.images: dict[int, dict] = {}
        self.categories: dict[int, str] = {}
        self.image_ids, self.annotation_ids, self.category_ids = (array("q") for _ in range(3))
        self.boxes, self.ints, self.flags = array("d"), array("B"), array("b")
        self.without_polygon = array("q")  # images of annotations without a valid polygon

    def read(self, file: IO[str]) -> None:
        takers = {
            key: functools.partial(_for_each, getattr(self, f"_add_to_{key}")) for key in KEYS
        }
        read_arrays(JsonStream(file), takers)

    def _add_to_images(self, image: dict) -> None:
        _add(self.images, image["id"], {k: image[k] for k in ("file_name", "height", "width")})

    def _add_to_categories(self, category: dict) -> None:
        _add(self.categories, category["id"], category["name"])

    def _add_to_annotations(self, annotation: dict) -> None:
        get = annotation.get
        if get("ignore", 0) != 0 or get("keypoints"):
            raise Unusual("ignore or keypoints")
        self.annotation_ids.append(annotation["id"])
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if "bbox" in annotation:
            box = annotation["bbox"]
            ints = _INTS[tuple(map(type, box))]
            if ints and max(map(abs, box)) > 2**53:
                raise Unusual("a number that float64 does not hold")
        else:
            box, ints = (0.0, 0.0, 0.0, 0.0), _NO_BOX
        flag = get("iscrowd", _NO_FLAG)
        if type(flag) is not int or (flag not in (0, 1) and "iscrowd" in annotation):
            raise Unusual("iscrowd is not 0 or 1")
        if not _has_valid_segmentation(get("segmentation")):
            self.without_polygon.append(image_id)
            return
        self.image_ids.append(image_id)
        self.category_ids.append(category_id)
        self.boxes.extend(box)
        self.ints.append(ints)
        self.flags.append(flag)


def _for_each(function: Callable[[Any], None], elements: Iterator[Any]) -> None:
    for element in elements:
        function(element)


def _add(values: dict[int, Any], key: Any, value: Any) -> None:
    if type(key) is not int or key in values:
        raise Unusual(f"the id {key!r} is not an integer, or given twice")
    values[key] = value


def _has_valid_segmentation(segmentation: Any) -> bool:
    """Returns whether ``load_coco_json`` keeps the annotation; raises where it does."""
    if not segmentation:
        return True
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            pycocotools.mask.frPyObjects(segmentation, *segmentation["size"])
        return True
    sizes = [len(polygon) for polygon in segmentation]
    return any(size % 2 == 0 and size >= 6 for size in sizes)


def _read(json_file: str, image_root: str, dataset_name: str) -> list[dict]:
    start = time.perf_counter()
    json_file = PathManager.get_local_path(json_file)
    reader = _Reader()
    with open(json_file) as file:
        reader.read(file)
    num_annotations = len(reader.annotation_ids)
    if len(np.unique(np.asarray(reader.annotation_ids))) < num_annotations:
        raise Unusual("ids of annotations are not unique")
    if not reader.categories:
        raise Unusual("no categories")
    sorted_ids = np.array(sorted(reader.categories), np.int64)
    class_names = [reader.categories[i] for i in sorted_ids.tolist()]
    image_ids = np.array(sorted(reader.images), np.int64)

    of_annotation = np.asarray(reader.image_ids)
    belongs = np.isin(of_annotation, image_ids)
    order = of_annotation.argsort(kind="stable")
    order = order[belongs[order]]
    starts = [*of_annotation[order].searchsorted(image_ids).tolist(), len(order)]
    category_ids = np.asarray(reader.category_ids)[order]
    classes = sorted_ids.searchsorted(category_ids).clip(max=len(sorted_ids) - 1)
    if (sorted_ids[classes] != category_ids).any():
        raise Unusual("an unknown category")
    columns = _Columns(
        np.asarray(reader.boxes).reshape(-1, 4)[order],
        np.asarray(reader.ints)[order],
        np.asarray(reader.flags)[order],
        classes,
    )
    num_invalid = int(np.isin(np.asarray(reader.without_polygon), image_ids).sum())

    dicts = []
    for image_id, first, last in zip(image_ids.tolist(), starts, starts[1:]):
        image = reader.images.pop(image_id)
        image["file_name"] = os.path.join(image_root, image["file_name"])
        image["image_id"] = image_id
        image["annotations"] = Annotations(columns, slice(first, last))
        dicts.append(image)
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = class_names
    metadata.thing_dataset_id_to_contiguous_id = {x: i for i, x in enumerate(sorted_ids.tolist())}
    _report(json_file, dataset_name, sorted_ids, len(dicts), time.perf_counter() - start)
    num_valid = len(order) + num_invalid
    if num_valid < num_annotations:
        logger.warning(
            f"{json_file} contains {num_annotations} annotations, but only {num_valid} of them "
            "match to images in the file."
        )
    if num_invalid:
        logger.warning(
            f"Filtered out {num_invalid} instances without valid segmentation. There might be "
            "issues in your dataset generation process."
        )
    return dicts


def _report(
    json_file: str, dataset_name: str, category_ids: np.ndarray, num_images: int, seconds: float
) -> None:
    """Says what ``load_coco_json`` says."""
    is_contiguous = category_ids[0] == 1 and category_ids[-1] == len(category_ids)
    if not is_contiguous and "coco" not in dataset_name:
        logger.warning(
            "Category ids in annotations are not in [1, #categories]! We'll apply a mapping for "
            "you."
        )
    if seconds > 1:
        logger.info(f"Loading {json_file} takes {seconds:.2f} seconds.")
    logger.info(f"Loaded {num_images} images in COCO format from {json_file}")
