"""Code shared by ``predict`` and ``predict-exported``: images in, pictures and JSON out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..plain.coco import CocoResults, ImageIds
    from ..plain.detections import Detections
    from ..plain.tiles import NMS

JSON_NAME = "detections.json"
INTERRUPTED = 130  # the exit code of a command stopped by Ctrl+C

OUTPUT_HELP = """\
Writes a picture of each image under the image's own name (images of the same name go to
sub-folders), and detections.json in COCO's format: "images", "categories" with the ids and names of
the training data, and "annotations" with image_id, category_id, bbox as [x, y, width, height] in
pixels, area and score. pycocotools reads it: COCO("detections.json").
"""


class Detector(Protocol):
    """The detector interface that both commands use.

    Attributes:
        categories: ``id`` and ``name`` of the K classes.
        max_detections: Maximum number of detections per image; None if unknown.
        how_to_raise_it: How to raise that number.
        iou_thresh: Threshold of its NMS.
        nms: An NMS for the detections of several tiles.
    """

    categories: Sequence[dict[str, Any]]
    max_detections: int | None
    how_to_raise_it: str
    iou_thresh: float
    nms: NMS

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        """Returns the detections in RGB images (H, W, 3) uint8, in pixels of those images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about detections that both commands have."""
    parser.add_argument(
        "--confidence-threshold",
        type=_probability,
        default=0.5,
        metavar="SCORE",
        help="minimum score of a detection (default: %(default)s); the model's own threshold also "
        "applies",
    )
    parser.add_argument(
        "--tiles",
        type=_tile_size,
        nargs="?",
        const=0,
        metavar="SIZE",
        help="for large photographs: detect in overlapping tiles of SIZE pixels (640 if left out), "
        "so that small objects stay large and the most detections of a pass hold for each tile",
    )
    parser.add_argument(
        "--tile-overlap",
        type=_overlap,
        metavar="FRACTION",
        help="part of a tile that its neighbors share at least (default: 0.25); objects up to this "
        "size lie whole in some tile",
    )


def add_image_ids(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for image ids."""
    parser.add_argument(
        "--image-ids",
        metavar="JSON",
        help="annotations in COCO's format: their images' ids are used in detections.json, which "
        "COCOeval can then compare with them (default: 1, 2, ...)",
    )


class Detecting:
    """Runs a detector on images, in one pass or in tiles, depending on the flags."""

    def __init__(
        self, detector: Detector, args: argparse.Namespace, *, warn: Callable[[str], None]
    ) -> None:
        """
        Args:
            detector: The detector.
            args: Parsed arguments with the flags of :func:`add_arguments`.
            warn: Called with a sentence for the user.
        """
        from ..plain.tiles import TILE_OVERLAP, TILE_SIZE

        self.detector = detector
        self.score_thresh = args.confidence_threshold
        self.tile_size = TILE_SIZE if args.tiles == 0 else args.tiles
        self.tile_overlap = TILE_OVERLAP if args.tile_overlap is None else args.tile_overlap
        self.class_names = [category["name"] for category in detector.categories]
        self.image_ids = _read_image_ids(args)
        self.warn = warn

    def results(self) -> CocoResults:
        """Returns empty results with the detector's categories."""
        from ..plain.coco import CocoResults

        return CocoResults(self.detector.categories, self.image_ids)

    def detect(self, pixels: np.ndarray, name: str) -> Detections:
        """Detects objects in an RGB image (H, W, 3) uint8, best first; ``name`` is for warnings."""
        from ..plain.tiles import Tiling

        most = self.detector.max_detections
        if self.tile_size is None:
            (found,) = self.detector.detect([pixels])
            found = found.select(found.scores >= self.score_thresh).best_first()
            if len(found.scores) == most:
                self.warn(
                    f"'{name}' has {most} detections, the most that one pass gives, and there may "
                    f"be more: use --tiles, or {self.detector.how_to_raise_it}"
                )
            return found
        tiling = Tiling(
            pixels.shape[1], pixels.shape[0], size=self.tile_size, overlap=self.tile_overlap
        )
        found, num_full = tiling.detect(
            pixels,
            self.detector.detect,
            iou_thresh=self.detector.iou_thresh,
            score_thresh=self.score_thresh,
            max_detections=most,
            nms=self.detector.nms,
        )
        if num_full:
            self.warn(
                f"{num_full} tiles of '{name}' have {most} detections, the most that one pass "
                f"gives, and there may be more: use smaller tiles than --tiles {self.tile_size}, "
                f"or {self.detector.how_to_raise_it}"
            )
        return found

    def draw(self, image: Image.Image, detections: Detections) -> Image.Image:
        """Returns a copy of an RGB image with the detections drawn."""
        from ..plain.drawing import class_color, detection_labels, draw_boxes

        classes = detections.classes.tolist()
        return draw_boxes(
            image,
            detections.boxes,
            labels=detection_labels(classes, detections.scores.tolist(), self.class_names),
            colors=[class_color(c) for c in classes],
        )

    def run(
        self,
        paths: Sequence[str],
        output: Path | None,
        *,
        show: Callable[[Image.Image], bool] | None = None,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> int:
        """Detects objects in image files; results so far are kept on interruption.

        Args:
            paths: The files.
            output: Folder for pictures and :data:`JSON_NAME`; None to write nothing.
            show: Shows a picture and returns whether to go on; used if ``output`` is None.
            progress: Shows the progress of an iterable.

        Returns:
            The number of files that could not be read; a line on standard error names each.
        """
        import numpy as np

        from ..plain.files import output_names, write_image
        from ..plain.images import open_rgb

        results, num_unreadable = self.results(), 0
        try:
            for path, name in progress(list(zip(paths, output_names(paths)))):
                try:
                    image = open_rgb(path)
                except Exception as error:  # decoders raise any type; the other images are fine
                    self.warn(f"error: cannot read '{path}': {error}")
                    num_unreadable += 1
                    continue
                detections = self.detect(np.asarray(image), path)
                results.add(path, image.size, detections)
                picture = self.draw(image, detections)
                if output is not None:
                    write_image(output / name, picture)
                elif show is not None and not show(picture):
                    break
        finally:
            if output is not None:
                results.write(output / JSON_NAME)
        where = "" if output is None else f": {output}"
        print(f"{results.num_detections} detections in {results.num_images} images{where}")
        return num_unreadable


def check_arguments(args: argparse.Namespace, paths: Sequence[str]) -> None:
    """Checks the flags that both commands have.

    Args:
        args: Parsed arguments with the flags of :func:`add_arguments` and :func:`add_image_ids`.
        paths: The images.

    Raises:
        ValueError: A flag has no effect, or the ``--image-ids`` file lacks one of the images.
    """
    if args.tile_overlap is not None and args.tiles is None:
        raise ValueError("--tile-overlap is for --tiles: give both")
    if args.image_ids is None:
        return
    if not os.path.isfile(args.image_ids):
        raise ValueError(f"--image-ids '{args.image_ids}' does not exist")
    image_ids = _read_image_ids(args)
    for path in paths:
        image_ids[path]


def check_output(paths: Sequence[str], output: Path) -> None:
    """Checks that pictures can be written to ``output``.

    Raises:
        ValueError: ``output`` is not a folder, or a picture would overwrite an image.
    """
    from ..plain.files import output_names

    if output.exists() and not output.is_dir():
        raise ValueError(f"--output '{output}' is a file, not a folder")
    inputs = {os.path.realpath(path) for path in paths}
    for name in output_names(paths):
        if os.path.realpath(output / name) in inputs:
            raise ValueError(f"--output would overwrite the image '{output / name}'")


def make_folder(output: Path) -> None:
    """Creates the output folder.

    Raises:
        ValueError: The folder cannot be created.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output '{output}' cannot be made: {error.strerror}") from None


def _read_image_ids(args: argparse.Namespace) -> ImageIds | None:
    from ..plain.coco import ImageIds

    return None if args.image_ids is None else ImageIds(args.image_ids)


def _probability(text: str) -> float:
    return _number(text, float, 0, 1)


def _overlap(text: str) -> float:
    return _number(text, float, 0, 0.9)


def _tile_size(text: str) -> int:
    return _number(text, int, 32, 10**6)


def _number(text: str, kind: type, low: float, high: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what} between {low} and {high}, got '{text}'")
    return value
