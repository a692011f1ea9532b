"""Generates scenes of drawn objects: data sets that need no download.

Each image is a function of (version, data set, index), so it is the same on every machine.
`shapes` has several classes and is for tests: of every ten images, one is empty, one has a cluster
of small labeled objects, and one has a cluster labeled as a whole by one `iscrowd` region.
`shapes_wide` is for experiments on localization: small images without clusters, whose objects cover
all levels of a feature pyramid and belong to one class.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .coco_writer import Picture, is_written, write_coco
from .download import disk_errors, require_free_space
from .shape_drawing import SHAPES_CLASSES, draw_background, paint, shape_mask

__all__ = [
    "SHAPES_CLASSES",
    "SHAPES_SPLITS",
    "class_names",
    "draw_masks",
    "draw_scene",
    "prepare_shapes",
]

SHAPES_SPLITS = {
    "shapes_train": 200,
    "shapes_val": 60,
    "shapes_wide_train": 400,
    "shapes_wide_val": 120,
}
IMAGES_FOLDER = "shapes/images"
_VERSION = 1  # of the drawing; files of another version are drawn again
_CLUSTER_SIZE = (8, 16)  # longer side of the objects in a cluster, pixels
_MIN_VISIBLE = 0.25
_TRIES = 10  # places tried for an object before giving up
_IMAGE_BYTES = 2**19  # size of a PNG file, rounded up


def prepare_shapes(root: Path, *, num_images: dict[str, int] | None = None) -> Path:
    """Draws the data sets; a second call returns immediately.

    Args:
        root: The folder of all data sets; everything goes under ``root/shapes``.
        num_images: Data set -> number of images. Default: :data:`SHAPES_SPLITS`.

    Returns:
        The folder ``root/shapes`` with ``images`` and ``annotations``.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    folder = Path(root) / "shapes"
    for name, num in (SHAPES_SPLITS if num_images is None else num_images).items():
        version = f"{_VERSION}, {num} images"
        if is_written(folder, name, version=version):
            continue
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            require_free_space(folder, num * _IMAGE_BYTES)
            write_coco(
                folder,
                name,
                (draw_scene(name, index) for index in range(num)),
                num_pictures=num,
                class_names=class_names(name),
                version=version,
            )
    return folder


def annotation_file(name: str) -> str:
    """Returns the path of a data set's annotations, relative to the folder of all data sets."""
    return f"shapes/annotations/{name}.json"


def class_names(name: str) -> tuple[str, ...]:
    """Returns the classes of a data set."""
    return SHAPES_CLASSES if _layout(name).has_classes else ("shape",)


def draw_scene(name: str, index: int) -> Picture:
    """Draws one image.

    Boxes enclose the pixels that are visible in the final image; at least a quarter of each labeled
    object is visible.

    Args:
        name: Name of the data set; different names give different images.
        index: Index of the image.
    """
    canvas = _draw(name, index)
    boxes, classes, is_crowd = canvas.labels()
    if not _layout(name).has_classes:
        classes = np.zeros_like(classes)
    return Picture(f"{name}/{index:06d}.png", canvas.pixels, boxes, classes, is_crowd)


def draw_masks(name: str, index: int) -> list[np.ndarray]:
    """Draws one image and returns, for each of its boxes, the visible pixels (H, W) bool."""
    return _draw(name, index).masks()


def _draw(name: str, index: int) -> "_Canvas":
    seed = [_VERSION, zlib.crc32(name.encode()), index]
    # Two sources, so that boxes depend only on numpy, not on what OpenCV draws.
    rng, look = np.random.default_rng([*seed, 0]), np.random.default_rng([*seed, 1])
    layout = _layout(name)
    height, width = int(rng.integers(*layout.heights)), int(rng.integers(*layout.widths))
    if rng.random() < 0.25:
        height, width = width, height
    canvas = _Canvas(draw_background(look, height, width), look)
    kind = index % 10 if layout.has_clusters else 0
    if kind != 7:
        for _ in range(int(rng.integers(1, 13))):
            size = np.exp(rng.uniform(*np.log(layout.sizes)))
            canvas.add(rng, int(rng.integers(len(SHAPES_CLASSES))), size)
    if kind in (3, 5):
        _add_cluster(rng, canvas, is_crowd=kind == 3)
    return canvas


@dataclass(frozen=True)
class _Layout:
    """The appearance of a data set's scenes."""

    heights: tuple[int, int]  # of the images in pixels, a range for `integers`
    widths: tuple[int, int]
    sizes: tuple[float, float]  # longer side of an object, pixels; log-uniform
    has_clusters: bool  # and empty images
    has_classes: bool  # otherwise all objects belong to one class


_SHAPES = _Layout(
    heights=(288, 353), widths=(384, 449), sizes=(8, 300), has_clusters=True, has_classes=True
)
_SHAPES_WIDE = _Layout(
    heights=(240, 273), widths=(256, 289), sizes=(16, 260), has_clusters=False, has_classes=False
)


def _layout(name: str) -> _Layout:
    return _SHAPES_WIDE if name.startswith("shapes_wide") else _SHAPES


@dataclass
class _Canvas:
    """An image and, for each pixel, the object visible there."""

    pixels: np.ndarray  # (H, W, 3) uint8
    look: np.random.Generator  # source of colors and textures
    owner: np.ndarray = field(init=False)  # (H, W) int32, index of an object or -1
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)  # pixels of each whole object
    groups: list[int] = field(default_factory=list)  # crowd region of each object, or -1

    def __post_init__(self) -> None:
        self.owner = np.full(self.pixels.shape[:2], -1, np.int32)

    def add(
        self,
        rng: np.random.Generator,
        label: int,
        size: float,
        *,
        within: tuple[int, int, int, int] | None = None,
        group: int = -1,
    ) -> None:
        """Draws an object where it and all earlier objects stay visible, if a place is found.

        Args:
            rng: Source of the place and the rotation.
            label: 0-based class.
            size: Longer side, pixels.
            within: x0 y0 x1 y1 of the region for the center. Default: the whole image.
            group: Number of the crowd region that the object belongs to, or -1.
        """
        height, width = self.owner.shape
        x0, y0, x1, y1 = within or (0, 0, width, height)
        mask = shape_mask(rng, label, size)  # (h, w) bool
        h, w = mask.shape
        for _ in range(_TRIES):
            top = int(rng.integers(y0, y1)) - h // 2
            left = int(rng.integers(x0, x1)) - w // 2
            inner = mask[max(-top, 0) : height - top, max(-left, 0) : width - left]
            region = (
                slice(max(top, 0), max(top, 0) + inner.shape[0]),
                slice(max(left, 0), max(left, 0) + inner.shape[1]),
            )
            if self._stays_visible(inner, region, int(mask.sum())):
                self.owner[region][inner] = len(self.classes)
                paint(self.look, self.pixels[region], inner)
                self.classes.append(label)
                self.areas.append(int(mask.sum()))
                self.groups.append(group)
                return

    def _stays_visible(self, inner: np.ndarray, region: tuple[slice, slice], area: int) -> bool:
        if inner.sum() < _MIN_VISIBLE * area:
            return False
        num = len(self.classes)
        seen = np.bincount(self.owner[self.owner >= 0], minlength=num)  # (num,)
        hidden = self.owner[region][inner]
        seen -= np.bincount(hidden[hidden >= 0], minlength=num)
        return bool((seen >= _MIN_VISIBLE * np.array(self.areas, np.float64)).all())

    def labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes (M, 4), classes (M,) and crowd flags (M,) of the visible pixels."""
        members = self._members()
        boxes = [_bounding_box(mask) for mask in self.masks()]
        return (
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array([self.classes[indices[0]] for indices in members], np.int64),
            np.array([self.groups[indices[0]] >= 0 for indices in members], bool),
        )

    def masks(self) -> list[np.ndarray]:
        """Returns the visible pixels (H, W) bool of every box, in the order of :meth:`labels`."""
        return [np.isin(self.owner, indices) for indices in self._members()]

    def _members(self) -> list[list[int]]:
        """Returns the indices of the objects of every box: one, or those of a crowd region."""
        groups = sorted(set(self.groups) - {-1})
        objects = [[i] for i, group in enumerate(self.groups) if group < 0]
        return objects + [[i for i, x in enumerate(self.groups) if x == group] for group in groups]


def _add_cluster(rng: np.random.Generator, canvas: _Canvas, *, is_crowd: bool) -> None:
    height, width = canvas.owner.shape
    h, w = int(rng.integers(60, 121)), int(rng.integers(60, 121))
    top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
    label = int(rng.integers(len(SHAPES_CLASSES)))
    for _ in range(int(rng.integers(15, 31))):
        size = rng.uniform(*_CLUSTER_SIZE)
        within = (left, top, left + w, top + h)
        canvas.add(rng, label, size, within=within, group=0 if is_crowd else -1)


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the continuous x1 y1 x2 y2 of the true pixels; there must be at least one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
