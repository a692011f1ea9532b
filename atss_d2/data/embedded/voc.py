"""Reads the boxes of one photograph from a Pascal VOC annotation file."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class VocAnnotation:
    """The boxes of one photograph.

    Args:
        width: Width of the photograph, pixels.
        height: Height of the photograph, pixels.
        boxes: (M, 4) float64, x1 y1 x2 y2 in Detectron2's continuous coordinates.
    """

    width: int
    height: int
    boxes: np.ndarray


def read_voc(path: Path, *, class_name: str) -> VocAnnotation:
    """Reads the boxes of one class from a Pascal VOC file.

    Pascal VOC counts pixels from 1 and includes the last pixel: a box over the whole photograph is
    (1, 1, width, height). In continuous coordinates this is (0, 0, width, height), so 1 is
    subtracted from xmin and ymin, and nothing from xmax and ymax.

    Args:
        path: The ``.xml`` file.
        class_name: The only class allowed in the file, compared case-insensitively.

    Raises:
        ValueError: The file is not XML, a tag is missing or not a number, a class is unknown, or a
            box is empty or leaves the photograph. The message names the file and the object.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not a valid XML file: {error}") from error
    width = _number(root, "size/width", f"{path}")
    height = _number(root, "size/height", f"{path}")
    boxes = []
    for index, entry in enumerate(root.iter("object")):
        place = f"{path}, object {index}"
        name = entry.findtext("name")
        if name is None:
            raise ValueError(f"{place}: the tag <name> is missing")
        if name.strip().lower() != class_name.lower():
            raise ValueError(f"{place}: unknown class {name.strip()!r}, expected {class_name!r}")
        corners = [_number(entry, f"bndbox/{tag}", place) for tag in ("xmin", "ymin")]
        corners += [_number(entry, f"bndbox/{tag}", place) for tag in ("xmax", "ymax")]
        x1, y1, x2, y2 = corners
        if not (1 <= x1 <= x2 <= width and 1 <= y1 <= y2 <= height):
            raise ValueError(
                f"{place}: box (xmin, ymin, xmax, ymax) = ({x1:g}, {y1:g}, {x2:g}, {y2:g}) is "
                f"empty or leaves the photograph of {width:g} x {height:g} pixels (counted from 1)"
            )
        boxes.append((x1 - 1, y1 - 1, x2, y2))
    return VocAnnotation(int(width), int(height), np.array(boxes, np.float64).reshape(-1, 4))


def _number(parent: ElementTree.Element, tag: str, place: str) -> float:
    text = parent.findtext(tag)
    if text is None:
        raise ValueError(f"{place}: the tag <{tag}> is missing")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{place}: <{tag}> is {text.strip()!r}, expected a number") from None
