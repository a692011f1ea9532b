"""Aerial photographs with boxes of tree crowns, tiled into COCO-format data sets.

The photographs are the sample data of the `deepforest` package (MIT), taken from its wheel:

=================  ===============================  ===========  =====  =======================
data set           photograph                       pixels       boxes  tiles
=================  ===============================  ===========  =====  =======================
trees_train        2019_YELL_2_528000_..._crop2     2299 x 2472  574    7 x 7, overlapping
trees_train_fit    its upper 75 %                   2299 x 1854         7 x 5, overlapping
trees_train_dev    its lower 25 %                   2299 x 618          4 x 1, side by side
trees_val          2019_YELL_2_541000_..._crop      1249 x 1035  279    2 x 2, side by side
trees_site2        OSBS_029, another site           400 x 400    61     one
=================  ===============================  ===========  =====  =======================

Recipes are chosen with `trees_train_fit` and `trees_train_dev`; `trees_val` and `trees_site2` are
held out, for evaluation only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError
from .coco_writer import Picture, is_written, write_coco
from .download import Wheel, disk_errors, fetch_members, require_free_space
from .tiles import Window, clip_to_window, evaluation_windows, training_windows
from .voc import read_voc

__all__ = ["TREES_CLASSES", "TREES_SPLITS", "TreesSplit", "prepare_trees"]

TREES_CLASSES = ("tree",)
IMAGES_FOLDER = "trees/images"
TREES_WHEEL = Wheel(
    "deepforest==2.1.0",
    "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    20_639_595,
)
_VERSION = "1"  # of the tiles; files of another version are written again
_TILE_SIZE = 640
# Every crop of up to 320 x 320 pixels of the photograph is inside one training tile.
_TRAIN_OVERLAP = 320
# COCO's protocol scores at most 100 detections per image: more boxes could not all be found.
_MAX_BOXES = 100
_MIN_VISIBLE = 0.5
_TILES_BYTES = 150 * 2**20  # all tiles and photographs together, rounded up


@dataclass(frozen=True)
class TreesSplit:
    """A part of a photograph that becomes one data set.

    Args:
        photograph: File name without suffix.
        rows: The part of the photograph's height, as fractions (from, to).
        is_train: True for overlapping training tiles, False for evaluation tiles side by side; see
            :func:`cut_tiles` for the boxes at their borders.
    """

    photograph: str
    rows: tuple[float, float]
    is_train: bool

    def windows(self, width: int, height: int) -> list[Window]:
        """Returns the tiles of a photograph of ``width`` x ``height`` pixels."""
        top, bottom = (round(height * fraction) for fraction in self.rows)
        if self.is_train:
            return training_windows((0, top, width, bottom), _TILE_SIZE, _TRAIN_OVERLAP)
        return evaluation_windows((0, top, width, bottom), _TILE_SIZE)


_TRAIN_PHOTOGRAPH = "2019_YELL_2_528000_4978000_image_crop2"
TREES_SPLITS = {
    "trees_train": TreesSplit(_TRAIN_PHOTOGRAPH, (0, 1), True),
    "trees_train_fit": TreesSplit(_TRAIN_PHOTOGRAPH, (0, 0.75), True),
    "trees_train_dev": TreesSplit(_TRAIN_PHOTOGRAPH, (0.75, 1), False),
    "trees_val": TreesSplit("2019_YELL_2_541000_4977000_image_crop", (0, 1), False),
    "trees_site2": TreesSplit("OSBS_029", (0, 1), False),
}


def prepare_trees(root: Path, *, download: Callable[[str, Path], None] | None = None) -> Path:
    """Downloads the photographs and writes tiles and annotations, unless they exist.

    Args:
        root: The folder of all data sets; everything goes under ``root/trees``.
        download: See :func:`fetch_members`.

    Returns:
        The folder ``root/trees`` with ``photographs``, ``images`` and ``annotations``.

    Raises:
        DataError: The download failed or the disk is full.
        ValueError: An annotation file is damaged.
    """
    folder = Path(root) / "trees"
    photographs = folder / "photographs"
    todo = [name for name in TREES_SPLITS if not is_written(folder, name, version=_VERSION)]
    names = sorted({split.photograph for split in TREES_SPLITS.values()})
    files = [f"{name}{suffix}" for name in names for suffix in (".png", ".xml")]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if todo:
            require_free_space(folder, _TILES_BYTES)  # before the download, not after it
        fetch_members(
            TREES_WHEEL,
            {f"deepforest/data/{name}": photographs / name for name in files},
            download=download,
        )
        for name in todo:
            _write_split(folder, name, TREES_SPLITS[name])
    return folder


def annotation_file(name: str) -> str:
    """Returns the path of a data set's annotations, relative to the folder of all data sets."""
    return f"trees/annotations/{name}.json"


def cut_tiles(
    name: str, pixels: np.ndarray, boxes: np.ndarray, windows: list[Window], *, is_train: bool
) -> Iterator[Picture]:
    """Cuts a photograph into tiles.

    Boxes are clipped to the tile. A box with less than half of its area left is dropped from a
    training tile; in an evaluation tile it becomes `iscrowd`, so that neither finding nor missing
    it counts.

    Args:
        name: Name of the data set and of the folder of its tiles.
        pixels: (H, W, 3) uint8, the photograph.
        boxes: (M, 4) x1 y1 x2 y2 in the photograph, of positive area.
        windows: The tiles.
        is_train: See above.

    Raises:
        ValueError: An evaluation tile has more boxes than COCO's 100 detections per image.
    """
    for window in windows:
        x0, y0, x1, y1 = window
        clipped, visible = clip_to_window(boxes, window)  # (M, 4), (M,)
        is_cut = visible < _MIN_VISIBLE  # (M,)
        keep = ~is_cut if is_train else visible > 0  # (M,)
        if not is_train and (~is_cut).sum() > _MAX_BOXES:
            raise ValueError(
                f"tile {window} of {name} holds {(~is_cut).sum()} boxes, COCO scores at most "
                f"{_MAX_BOXES} detections an image: use smaller tiles"
            )
        yield Picture(
            file_name=f"{name}/{x0:04d}_{y0:04d}.png",
            pixels=pixels[y0:y1, x0:x1],
            boxes=clipped[keep],
            classes=np.zeros(keep.sum(), np.int64),
            is_crowd=is_cut[keep],
        )


def _write_split(folder: Path, name: str, split: TreesSplit) -> None:
    photograph = folder / "photographs" / f"{split.photograph}.png"
    annotation = read_voc(photograph.with_suffix(".xml"), class_name=TREES_CLASSES[0])
    pixels = cv2.imread(str(photograph), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(f"{photograph} is not a readable picture: delete it and run again")
    if pixels.shape[:2] != (annotation.height, annotation.width):
        raise DataError(
            f"{photograph} has {pixels.shape[1]} x {pixels.shape[0]} pixels, its annotation says "
            f"{annotation.width} x {annotation.height}: delete both files and run again"
        )
    windows = split.windows(annotation.width, annotation.height)
    write_coco(
        folder,
        name,
        cut_tiles(name, pixels, annotation.boxes, windows, is_train=split.is_train),
        num_pictures=len(windows),
        class_names=TREES_CLASSES,
        version=_VERSION,
    )
