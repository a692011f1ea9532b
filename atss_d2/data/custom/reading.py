"""Detects the format of ``--train PATH [PATH]`` and reads it as COCO's dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.json_file import read_json
from ..errors import DataError

_LABEL_FOLDERS = ("Annotations", "annotations", "labels", "xml")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_JSON_NAMES = ("_annotations.coco.json", "annotations.json", "labels.json")


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Args:
        content: COCO's dict of ``images``, ``annotations`` and ``categories``. Its content is not
            checked yet.
        image_root: Folder that the images' ``file_name`` is relative to.
        json_file: The file that ``content`` was read from; None if it was converted.
        format: Name of the format for messages, such as ``"COCO"``.
        has_byte_order_mark: Whether ``json_file`` starts with one, which Detectron2 does not read.
    """

    content: dict[str, Any]
    image_root: Path
    json_file: Path | None
    format: str
    has_byte_order_mark: bool = False

    @property
    def place(self) -> str:
        """The file or folder, for messages."""
        return str(self.json_file or self.image_root)


def read_source(paths: Sequence[str]) -> Source:
    """Reads a data set.

    Args:
        paths: A COCO JSON and the folder of its images; or a single folder that contains a COCO
            JSON or is in Pascal VOC or YOLO format (docs/custom_dataset.md lists the layouts).

    Raises:
        DataError: There is no data set in one of these formats, or it cannot be read.
    """
    first, *rest = (Path(path).expanduser() for path in paths)
    if not first.exists():
        raise DataError(f"'{first}' does not exist: give an annotation file or a folder")
    if len(rest) > 1:
        raise DataError(f"give a JSON file and the folder of its images, not {len(paths)} paths")
    if first.is_file():
        if first.suffix.lower() in (".yaml", ".yml"):
            raise DataError(
                f"'{first}' names several parts: give the folder of one of them, for example "
                f"'{first.parent / 'train'}'; its yaml is found there"
            )
        if not rest:
            raise DataError(f"'{first}' needs the folder of its images: give both, in this order")
        if not rest[0].is_dir():
            raise DataError(f"'{rest[0]}' is not a folder: give the folder of the images")
        return _read_coco(first, rest[0])
    if rest:
        raise DataError(
            f"'{first}' is a folder, not a JSON file: give a JSON file and the folder of its "
            "images, or one folder"
        )
    return _read_folder(first)


def _read_coco(path: Path, images: Path) -> Source:
    file = read_json(path)
    return Source(file.content, images, path, "COCO", file.has_byte_order_mark)


def _read_folder(folder: Path) -> Source:
    from . import conversion

    for name in _JSON_NAMES:
        if (folder / name).is_file():
            images = _first_folder(folder, _IMAGE_FOLDERS) or folder
            return _read_coco(folder / name, images)
    images, labels = _images_and_labels(folder)
    if _holds(labels, ".xml"):
        return Source(conversion.read_voc_folder(images, labels), images, None, "Pascal VOC")
    yaml = _find_yaml(folder)
    if _holds(labels, ".txt") and yaml is not None:
        return Source(conversion.read_yolo_folder(images, labels, yaml), images, None, "YOLO")
    classes = next((f for f in (labels, folder, folder.absolute().parent) if _names(f)), None)
    if _holds(labels, ".txt") and classes is not None:
        content = conversion.read_yolo_folder(images, labels, _names(classes))
        return Source(content, images, None, "YOLO")
    if _holds(labels, ".txt"):
        raise DataError(
            f"'{labels}' holds YOLO labels, but neither it nor a folder above has a data.yaml with "
            "the names of the classes: write one with `names: [first, second, ...]`"
        )
    for part in (folder / "train", folder / "images" / "train"):
        if part.is_dir():
            raise DataError(
                f"'{folder}' has several parts: give them one by one, --train '{part}' and --val "
                "likewise"
            )
    raise DataError(
        f"'{folder}' holds none of {', '.join(_JSON_NAMES)} (COCO), *.xml (Pascal VOC) or *.txt "
        "(YOLO) in it or in its folder of labels: give a COCO JSON and the folder of its images"
    )


def _images_and_labels(folder: Path) -> tuple[Path, Path]:
    """Returns the image and label folders of a VOC or YOLO set, by default ``folder`` itself."""
    images = _first_folder(folder, _IMAGE_FOLDERS)
    labels = _first_folder(folder, _LABEL_FOLDERS)
    # In Ultralytics' layout, labels/train is next to images/train, and the user gives the latter.
    if labels is None and "images" in folder.parts:
        position = len(folder.parts) - 1 - folder.parts[::-1].index("images")
        beside = Path(*folder.parts[:position], "labels", *folder.parts[position + 1 :])
        labels = beside if beside.is_dir() else None
    return images or folder, labels or folder


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _holds(folder: Path, suffix: str) -> bool:
    return any(path.suffix.lower() == suffix for path in folder.iterdir())


def _names(folder: Path) -> list[str]:
    """Returns the lines of classes.txt, as written by labeling tools; [] if it does not exist."""
    path = folder / "classes.txt"
    return path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []


def _find_yaml(folder: Path) -> Path | None:
    """Finds the data.yaml of a YOLO set, in the folder or up to two levels above it."""
    folder = folder.absolute()
    for place in (folder, *list(folder.parents)[:2]):
        found = sorted([*place.glob("data.y*ml"), *place.glob("dataset.y*ml")])
        if found:
            return found[0]
    return None
