"""Masks of the generated scenes: a second annotation file beside that of a data set.

They are a file of their own because few models need them, and reading them takes time.
"""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util

from ...plain.files import replacing
from . import shapes
from .download import disk_errors

__all__ = ["MASK_SETS", "annotation_file", "prepare_masks"]

# Data set with masks -> the one that has the same images and boxes.
MASK_SETS = {
    "shapes_wide_masks_train": "shapes_wide_train",
    "shapes_wide_masks_val": "shapes_wide_val",
}
_SUFFIX = "_masks.json"


def annotation_file(source: str) -> str:
    """Returns the path of the masks of a data set, relative to the folder of all data sets."""
    return shapes.annotation_file(source).replace(".json", _SUFFIX)


def prepare_masks(path: Path) -> None:
    """Writes the masks at ``path``; does nothing for other files, and if they are up to date.

    The file has the content of the annotations beside it, whose images must have been drawn, and
    ``segmentation``: the visible pixels of each box, run-length encoded, as polygons cannot have
    the holes of rings. ``area`` stays that of the box.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    if not path.name.endswith(_SUFFIX):
        return
    source = path.with_name(path.name.replace(_SUFFIX, ".json"))
    if path.exists() and path.stat().st_mtime_ns > source.stat().st_mtime_ns:
        return
    content = json.loads(source.read_text())
    masks = (
        mask
        for index in range(len(content["images"]))
        for mask in shapes.draw_masks(source.stem, index)
    )
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        encoded = mask_util.encode(np.asfortranarray(mask, np.uint8))
        counts = encoded["counts"].decode("ascii")
        annotation["segmentation"] = {"size": list(mask.shape), "counts": counts}
    with disk_errors(path.parent), replacing(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n")
