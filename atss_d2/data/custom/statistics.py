"""Counts the images, the boxes by size and the classes by frequency of a data set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

# COCO's limits of small, medium and large, with steps of a factor of 2 or less in between.
SIZE_EDGES = (0, 8, 16, 32, 64, 96, 192, 384, np.inf)
_QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_MAX_ROWS = 30


@dataclass(frozen=True)
class Statistics:
    """The statistics of one part of a data set: M objects (boxes without `iscrowd`) in N images.

    Args:
        names: K class names.
        file_names: N image names.
        heights: (N,) heights of the images, pixels.
        widths: (N,) widths of the images, pixels.
        image_idxs: (M,) index of each object's image.
        sizes: (M,) square root of each box's area, pixels.
        classes: (M,) class of each object, from 0.
        num_crowd: Number of `iscrowd` regions.
    """

    names: tuple[str, ...]
    file_names: tuple[str, ...]
    heights: np.ndarray
    widths: np.ndarray
    image_idxs: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    num_crowd: int

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.heights)

    @property
    def num_objects(self) -> int:
        """M."""
        return len(self.sizes)

    @property
    def objects_per_image(self) -> np.ndarray:
        """(N,) number of objects."""
        return np.bincount(self.image_idxs, minlength=self.num_images)

    @property
    def objects_per_class(self) -> np.ndarray:
        """(K,) number of objects."""
        return np.bincount(self.classes, minlength=len(self.names))

    @property
    def images_per_class(self) -> np.ndarray:
        """(K,) number of images with at least one object of the class."""
        pairs = np.unique(self.classes * max(self.num_images, 1) + self.image_idxs)
        return np.bincount(pairs // max(self.num_images, 1), minlength=len(self.names))


def count(content: dict[str, Any]) -> Statistics:
    """Counts a checked COCO dict."""
    images, categories = content["images"], content["categories"]
    row = {image["id"]: i for i, image in enumerate(images)}
    column = {category["id"]: k for k, category in enumerate(categories)}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    boxes = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
    return Statistics(
        names=tuple(category["name"] for category in categories),
        file_names=tuple(image["file_name"] for image in images),
        heights=np.array([image["height"] for image in images], np.int64),
        widths=np.array([image["width"] for image in images], np.int64),
        image_idxs=np.array([row[a["image_id"]] for a in objects], np.int64),
        sizes=np.sqrt(boxes[:, 2] * boxes[:, 3]),
        classes=np.array([column[a["category_id"]] for a in objects], np.int64),
        num_crowd=len(content["annotations"]) - len(objects),
    )


def describe(train: Statistics, val: Statistics) -> str:
    """Returns tables of both parts for the console."""
    parts = {"train": train, "val": val}
    rows = [
        (
            *(name, s.num_images, int((s.objects_per_image == 0).sum()), s.num_objects),
            *(s.num_crowd, f"{np.median(s.objects_per_image):g}", int(s.objects_per_image.max())),
            f"{int(np.median(s.widths))} x {int(np.median(s.heights))}",
        )
        for name, s in parts.items()
    ]
    header = ("part", "images", "empty", "objects", "iscrowd", "per image", "most", "median size")
    counts = tabulate(rows, header)

    rows = []
    for low, high in itertools.pairwise(SIZE_EDGES):
        numbers = [int(((s.sizes >= low) & (s.sizes < high)).sum()) for s in parts.values()]
        coco = "small" if high <= 32 else "medium" if high <= 96 else "large"
        rows.append((f"{low:g} to {high:g} px" if high < np.inf else f"{low:g} px and more", coco))
        rows[-1] += tuple(f"{n} ({_percent(n, s)})" for n, s in zip(numbers, parts.values()))
    while rows and rows[-1][2].startswith("0 ") and rows[-1][3].startswith("0 "):
        rows.pop()
    sizes = tabulate(rows, ("sqrt(w x h)", "COCO's", *parts))
    quantiles = ", ".join(
        f"{100 * q:g} %: {value:.0f}"
        for q, value in zip(_QUANTILES, np.quantile(train.sizes, _QUANTILES))
    )

    order = np.argsort(-train.objects_per_class, kind="stable")
    shown = order if len(order) <= _MAX_ROWS else [*order[: _MAX_ROWS - 5], *order[-5:]]
    rows = [
        (
            *(_shorten(train.names[k]), train.objects_per_class[k], train.images_per_class[k]),
            *(val.objects_per_class[k], val.images_per_class[k]),
        )
        for k in shown
    ]
    if len(order) > _MAX_ROWS:
        rows.insert(_MAX_ROWS - 5, (f"... {len(order) - _MAX_ROWS} more classes", "", "", "", ""))
    header = ("class", "train: objects", "images", "val: objects", "images")
    classes = tabulate(rows, header)
    return f"{counts}\n\n{sizes}\nObjects of train, px: {quantiles}\n\n{classes}"


def _percent(number: int, statistics: Statistics) -> str:
    return f"{100 * number / max(statistics.num_objects, 1):.0f} %"


def _shorten(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def choose_examples(content: dict[str, Any], num: int) -> list[Any]:
    """Returns ids of images that together show many classes, then many objects, but not hundreds.

    Args:
        content: A checked COCO dict.
        num: Maximum number of images.
    """
    classes: dict[Any, list[int]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        classes[annotation["image_id"]].append(annotation["category_id"])
    chosen: list[Any] = []
    rng = np.random.default_rng(0)
    order = [list(classes)[i] for i in rng.permutation(len(classes))]
    missing = {category["id"] for category in content["categories"]}
    while order and len(chosen) < num:
        # Up to a dozen objects are easy to see in a picture; beyond that, fewer are better.
        best = max(
            order,
            key=lambda i: (
                len(missing & set(classes[i])),
                min(len(classes[i]), 12) - max(len(classes[i]) - 12, 0),
            ),
        )
        missing -= set(classes[best])
        if not missing:  # all classes were shown: start another round
            missing = {category["id"] for category in content["categories"]}
        chosen.append(best)
        order.remove(best)
    return chosen
