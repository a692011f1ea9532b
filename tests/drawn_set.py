"""A drawn data set in COCO's format: discs, squares and triangles whose ids are not 1, 2, 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from atss_d2.data.embedded.shape_drawing import draw_background, paint, shape_mask

IDS = {"disc": 3, "square": 7, "triangle": 40}
_LABELS = {"disc": 0, "square": 1, "triangle": 2}  # of shape_mask
_CHANCES = (0.5, 0.35, 0.15)


def draw_set(
    images: Path,
    num: int,
    *,
    seed: int = 0,
    heights: tuple[int, int] = (90, 130),
    widths: tuple[int, int] = (120, 170),
    sizes: tuple[float, float] = (14, 60),
    suffix: str = ".jpg",
) -> dict[str, Any]:
    """Draws images with one to eight objects that do not touch.

    Args:
        images: Folder for them, made.
        num: How many.
        seed: Other seeds give other images under the same names.
        heights: Of the images, pixels.
        widths: Likewise.
        sizes: Longer side of the objects; uniform in the logarithm.
        suffix: Format of the files.

    Returns:
        COCO's dict. Its categories are not in the order of their ids.
    """
    images.mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for i in range(num):
        rng = np.random.default_rng([seed, i])
        height, width = int(rng.integers(*heights)), int(rng.integers(*widths))
        pixels = draw_background(rng, height, width)
        is_taken = np.zeros((height, width), bool)
        entries.append(
            {"id": 100 + i, "file_name": f"{i:04d}{suffix}", "height": height, "width": width}
        )
        for _ in range(int(rng.integers(1, 9))):
            name = rng.choice(list(IDS), p=_CHANCES)
            mask = shape_mask(rng, _LABELS[name], float(np.exp(rng.uniform(*np.log(sizes)))))
            h, w = mask.shape
            if h >= height or w >= width:
                continue
            top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            place = slice(top, top + h), slice(left, left + w)
            if is_taken[place].any():
                continue
            is_taken[place] = True
            paint(rng, pixels[place], mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + i,
                    "category_id": IDS[name],
                    "bbox": [left, top, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        assert cv2.imwrite(str(images / entries[-1]["file_name"]), pixels)
    categories = [{"id": IDS[name], "name": name} for name in ("triangle", "disc", "square")]
    return {"images": entries, "annotations": annotations, "categories": categories}


def write_set(folder: Path, num: int, *, name: str = "train", **options: Any) -> dict[str, Any]:
    """Writes ``folder/name.json`` and ``folder/images/...``; returns the JSON's content."""
    content = draw_set(folder / "images", num, **options)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return content


def write_voc(content: dict[str, Any], labels: Path) -> None:
    """Writes one XML file an image, with Pascal VOC's corners that count from 1."""
    labels.mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        objects = ""
        for x, y, w, h, name in _objects(content, image, names):
            objects += (
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            )
        text = (
            f"<annotation><filename>{image['file_name']}</filename><size><width>{image['width']}"
            f"</width><height>{image['height']}</height><depth>3</depth></size>{objects}"
            "</annotation>"
        )
        (labels / image["file_name"]).with_suffix(".xml").write_text(text)


def write_yolo(content: dict[str, Any], labels: Path, data_yaml: Path) -> None:
    """Writes one text file an image and the names of the classes, in the order of their ids."""
    labels.mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    order = [names[i] for i in sorted(names)]
    data_yaml.write_text(f"train: train/images\nnc: {len(order)}\nnames: {order}\n")
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = [
            f"{order.index(name)} {(x + w / 2) / width:.7f} {(y + h / 2) / height:.7f} "
            f"{w / width:.7f} {h / height:.7f}\n"
            for x, y, w, h, name in _objects(content, image, names)
        ]
        (labels / image["file_name"]).with_suffix(".txt").write_text("".join(lines))


def _objects(content: dict[str, Any], image: dict, names: dict[int, str]) -> list[tuple]:
    return [
        (*a["bbox"], names[a["category_id"]])
        for a in content["annotations"]
        if a["image_id"] == image["id"]
    ]
