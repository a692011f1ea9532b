"""Writes detections in COCO format, for every command of this project."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .detections import Detections
from .files import replacing


def unnamed_categories(num_classes: int) -> list[dict[str, Any]]:
    """Returns categories for a model without class names: the class numbers, from 0."""
    return [{"id": i, "name": str(i)} for i in range(num_classes)]


def annotation(
    number: int, image_id: int | str, category_id: int, box: list[float], score: float
) -> dict[str, Any]:
    """Returns a detection as an entry of ``annotations``.

    Args:
        number: 1, 2, ...; COCOeval reads id 0 as no match.
        image_id: Id of the image.
        category_id: Id of the category.
        box: [x, y, width, height] in pixels of the image.
        score: Its score.
    """
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "score": score,
    }


class ImageIds:
    """Image ids from an annotation file, so that results can be compared with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Args:
            path: A JSON file in COCO format.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is not in COCO format.
        """
        self._path = path
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            self._ids = {x["file_name"]: x["id"] for x in content["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{path}' is not in COCO's format: it must be a JSON file whose `images` have "
                "`id` and `file_name`"
            ) from error

    def __getitem__(self, file_name: str) -> int:
        """Returns the id of the image whose ``file_name`` is the end of this path.

        Raises:
            ValueError: There is no such image.
        """
        parts = Path(file_name).parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in self._ids:
                return self._ids[name]
        raise ValueError(f"'{self._path}' has no image '{file_name}'")


class CocoResults:
    """``images``, ``categories`` and ``annotations`` as in COCO's ground truth, plus scores.

    ``pycocotools.coco.COCO(file)`` reads the file, and ``COCOeval(ground_truth, COCO(file),
    "bbox")`` evaluates it.
    """

    def __init__(
        self, categories: Sequence[dict[str, Any]], image_ids: ImageIds | None = None
    ) -> None:
        """
        Args:
            categories: ``id`` and ``name`` of the classes 0..K-1.
            image_ids: Ids of the images. Default: from 1, in the order in which they are added.
        """
        self._image_ids = image_ids
        self._categories = [{"id": x["id"], "name": x["name"]} for x in categories]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    @property
    def num_images(self) -> int:
        """The number of images so far."""
        return len(self._images)

    @property
    def num_detections(self) -> int:
        """The number of detections so far."""
        return len(self._annotations)

    def add(
        self,
        file_name: str,
        image_size: tuple[int, int],
        detections: Detections,
        **more: Any,
    ) -> None:
        """Adds an image with its detections, best first.

        Args:
            file_name: File name as given by the user.
            image_size: (width, height).
            detections: Detections in pixels of the image.
            more: Other entries of the image, such as ``frame_index``.
        """
        image_id = len(self._images) + 1
        if self._image_ids is not None:
            image_id = self._image_ids[file_name]
        width, height = image_size
        self._images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height, **more}
        )
        for (x0, y0, x1, y1), score, c in zip(*(x.tolist() for x in detections.best_first())):
            self._annotations.append(
                annotation(
                    len(self._annotations) + 1,
                    image_id,
                    self._categories[c]["id"],
                    [x0, y0, x1 - x0, y1 - y0],
                    score,
                )
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, with one image or detection per line; creates its folder.

        Raises:
            OSError: The file cannot be written.
        """
        parts = []
        for key in ("images", "categories", "annotations"):
            rows = getattr(self, f"_{key}")
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            parts.append(f'"{key}": [\n{lines}\n]' if rows else f'"{key}": []')
        with replacing(path) as temporary:
            temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
