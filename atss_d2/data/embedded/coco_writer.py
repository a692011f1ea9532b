"""Writes pictures with boxes as a data set in COCO format: a folder of PNG files and one JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...plain.files import replacing
from ..errors import DataError
from .download import is_filled


@dataclass(frozen=True)
class Picture:
    """One picture of a data set.

    Args:
        file_name: Path relative to the data set's image folder, with forward slashes.
        pixels: (H, W, 3) uint8, BGR.
        boxes: (M, 4) x1 y1 x2 y2 in Detectron2's continuous coordinates.
        classes: (M,) int, 0-based.
        is_crowd: (M,) bool, COCO's `iscrowd`.
    """

    file_name: str
    pixels: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def write_coco(
    folder: Path,
    name: str,
    pictures: Iterable[Picture],
    *,
    num_pictures: int,
    class_names: tuple[str, ...],
    version: str,
) -> None:
    """Writes ``folder/images/...`` and, after all images, ``folder/annotations/name.json``.

    The same pictures give the same bytes. Several processes may write the same data set at the same
    time, as each file appears only once it is complete.

    Args:
        folder: See above.
        name: Name of the data set.
        pictures: The pictures, drawn or cut one at a time while they are written.
        num_pictures: Their number, for the progress bar.
        class_names: Names in the order of the 0-based classes; COCO's category ids count from 1.
        version: Version of the content, see :func:`is_written`.

    Raises:
        DataError: A picture cannot be written.
    """
    images, annotations = [], []
    for picture in tqdm(pictures, total=num_pictures, desc=name, unit="image"):
        height, width = picture.pixels.shape[:2]
        with replacing(folder / "images" / picture.file_name) as temporary:
            if not cv2.imwrite(str(temporary), picture.pixels):
                raise DataError(f"cannot write {temporary}: the disk may be full")
        images.append(
            {
                "id": len(images) + 1,
                "file_name": picture.file_name,
                "width": width,
                "height": height,
            }
        )
        for box, label, is_crowd in zip(
            picture.boxes.tolist(), picture.classes.tolist(), picture.is_crowd.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    # pycocotools reads id 0 as "no match", so ids count from 1.
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(is_crowd),
                }
            )
    content = {
        "info": {"description": name, "version": version},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": label} for i, label in enumerate(class_names)],
    }
    # Written last, as this file marks the data set as complete.
    with replacing(folder / "annotations" / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def is_written(folder: Path, name: str, *, version: str) -> bool:
    """Returns whether a data set of this version is complete; cheap, as it opens no picture."""
    try:
        content = json.loads((folder / "annotations" / f"{name}.json").read_text())
        return content["info"]["version"] == version and all(
            is_filled(folder / "images" / image["file_name"]) for image in content["images"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing, truncated, or not ours: to be written again
