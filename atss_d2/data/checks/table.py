"""A data set as columns, made of COCO's dict or of Detectron2's dicts: what the checks look at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .columns import Annotations, Column, Images
from .values import to_boxes, to_numbers

_MAX_PIXELS = 1e9  # also fits into the integers and the 32-bit numbers that follow


@dataclass
class Table:
    """N images and M annotations.

    Args:
        names: N names of the images' files, of any type as long as they are not checked.
        image_ids: N ids, of any type.
        widths: (N,) widths in pixels, NaN if they are not numbers.
        heights: (N,) heights, likewise.
        image_idxs: (M,) index of each annotation's image; -1 if it has none.
        classes: (M,) index of each annotation's class; -1 if it has none.
        boxes: (M, 4) x, y, width, height in pixels; NaN if they are not four numbers.
        raw_boxes: M boxes as they were found.
        annotation_ids: M ids; None where annotations have no ids.
        of_image: M ids of images, as they were found.
        of_class: M ids of classes, likewise.
        class_ids: K ids of classes.
        is_crowd: (M,) whether the annotation is a region with ``iscrowd``.
    """

    names: list[Any]
    image_ids: list[Any]
    widths: np.ndarray
    heights: np.ndarray
    image_idxs: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    raw_boxes: Sequence[Any]
    annotation_ids: Column | None
    of_image: Sequence[Any]
    of_class: Sequence[Any]
    class_ids: list[Any]
    is_crowd: np.ndarray

    @property
    def num_annotations(self) -> int:
        """M."""
        return len(self.raw_boxes)

    @property
    def is_box(self) -> np.ndarray:
        """(M,) whether the box is four finite numbers, small enough to be pixels."""
        with np.errstate(invalid="ignore"):
            return (np.abs(self.boxes) < _MAX_PIXELS).all(1)

    @property
    def sizes(self) -> np.ndarray:
        """(M, 2) width and height of each annotation's image; infinite if they are unknown."""
        sizes = np.stack([self.widths, self.heights], 1)
        sizes = np.where(sizes > 0, sizes, np.inf)
        sizes = np.concatenate([sizes, np.full((1, 2), np.inf)])  # the last is that of index -1
        return sizes[self.image_idxs]


def table_of_coco(images: Images, annotations: Annotations, categories: Sequence[dict]) -> Table:
    """Makes a table of COCO's lists."""
    class_ids = [category.get("id") for category in categories]
    crowd = annotations["iscrowd"]
    is_crowd = (crowd.array != 0) | (crowd.is_none & ~crowd.is_missing)
    for i, value in crowd.odd.items():
        is_crowd[i] = _is_true(value)
    return Table(
        names=images.names,
        image_ids=images.ids,
        widths=to_numbers(images.widths),
        heights=to_numbers(images.heights),
        image_idxs=annotations["image_id"].look_up(images.ids),
        classes=annotations["category_id"].look_up(class_ids),
        raw_boxes=annotations["bbox"],
        boxes=annotations["bbox"].numbers(),
        annotation_ids=annotations["id"],
        of_image=annotations["image_id"],
        of_class=annotations["category_id"],
        class_ids=class_ids,
        is_crowd=is_crowd,
    )


def table_of_dicts(dicts: Sequence[dict], num_classes: int | None) -> Table:
    """Makes columns of dicts in Detectron2's format.

    Args:
        dicts: One dict an image.
        num_classes: Number of classes; None if unknown, so that all of them count as known.
    """
    groups = [x.get("annotations") or () for x in dicts]
    annotations = list(itertools.chain.from_iterable(groups))
    counts = [len(group) for group in groups]
    of_class = [a.get("category_id") for a in annotations]
    labels = to_numbers(of_class)
    is_known = (labels >= 0) & (labels < (np.inf if num_classes is None else num_classes))
    raw = [a.get("bbox") for a in annotations]
    boxes = to_boxes(raw)
    # BoxMode.XYXY_ABS is 0, XYWH_ABS is 1, XYWHA_ABS is 4; other modes cannot be checked here.
    modes = to_numbers([a.get("bbox_mode") for a in annotations])
    boxes[modes == 0, 2:] -= boxes[modes == 0, :2]
    for i in np.flatnonzero(modes == 4):
        if hasattr(raw[i], "__len__") and len(raw[i]) == 5:
            cx, cy, w, h = to_boxes([list(raw[i])[:4]])[0]
            boxes[i] = cx - w / 2, cy - h / 2, w, h
    image_ids = [x.get("image_id") for x in dicts]
    return Table(
        names=[x.get("file_name") for x in dicts],
        image_ids=image_ids,
        widths=to_numbers([x.get("width") for x in dicts]),
        heights=to_numbers([x.get("height") for x in dicts]),
        image_idxs=np.repeat(np.arange(len(dicts)), counts),
        classes=np.where(is_known, labels, -1).astype(np.int64),
        boxes=boxes,
        raw_boxes=raw,
        annotation_ids=None,
        of_image=list(itertools.chain.from_iterable(map(itertools.repeat, image_ids, counts))),
        of_class=of_class,
        class_ids=[] if num_classes is None else list(range(num_classes)),
        is_crowd=np.array([_is_true(a.get("iscrowd", 0)) for a in annotations], bool),
    )


def _is_true(value: Any) -> bool:
    # Detectron2 takes everything else than 0 for a region.
    return value != 0
