r"""Detects objects with an exported file, and writes pictures and a detections.json to a folder.

    python tools/predict_exported.py output/export/model.onnx a.jpg b.jpg --output found
    python tools/predict_exported.py output/export/model.onnx aerial.png --tiles

An .onnx file needs only onnxruntime, numpy and Pillow; other formats need torch, torchvision and
this package. The file itself says how to prepare images and what the classes are called.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .detecting import (
    INTERRUPTED,
    OUTPUT_HELP,
    Detecting,
    add_arguments,
    add_image_ids,
    check_arguments,
    check_output,
    make_folder,
)
from .errors import EXPECTED, Parser, refuse, tell

if TYPE_CHECKING:
    import numpy as np

    from ..plain.detections import Detections

# Takes images (N, 3, H, W), returns boxes (N, D, 4), scores and classes (N, D), and counts (N,).
Function = Callable[["np.ndarray"], "tuple[np.ndarray, ...]"]


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(
        description=__doc__,
        epilog=OUTPUT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a file that tools/export_model.py wrote")
    parser.add_argument(
        "images", nargs="+", metavar="image", help="files, quoted patterns, folders"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/predictions"), help="folder (%(default)s)"
    )
    add_arguments(parser)
    add_image_ids(parser)
    return parser


class ExportedDetector:
    """Adapts an exported file to :class:`~atss_d2.commands.detecting.Detecting`."""

    how_to_raise_it = "export it again with model.max_detections_per_image=1000"

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The file.

        Raises:
            ValueError: The file was not written by our exporters.
            ImportError: A package that the format needs is not installed.
        """
        from ..plain.detections import nms

        if not path.is_file():
            raise ValueError(f"there is no file '{path}'")
        load = _load_onnx if path.suffix == ".onnx" else _load_with_torch
        self.function, self.metadata = load(path)
        names = self.metadata["class_names"]
        ids = self.metadata.get("category_ids") or range(len(names))
        self.categories = [{"id": i, "name": name} for i, name in zip(ids, names)]
        self.has_names = names != [str(i) for i in range(len(names))]
        self.max_detections = self.metadata["max_detections"]
        self.iou_thresh = self.metadata["iou_thresh"]
        self.nms = nms

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        """Returns the detections in RGB images (H, W, 3) uint8, best first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        import numpy as np

        from ..plain.detections import Detections

        inputs = prepare(image, self.metadata)
        boxes, scores, classes, num_detections = (x[0] for x in self.function(inputs))
        found = Detections(boxes, scores, classes).select(np.arange(len(scores)) < num_detections)
        if not self.metadata["with_nms"]:
            keep = self.nms(*found, self.iou_thresh)
            found = found.select(keep[: self.max_detections])
        factors = np.divide(image.shape[1::-1], inputs.shape[:1:-1]).astype(np.float32)
        return found._replace(boxes=found.boxes * np.tile(factors, 2))


def _load_onnx(path: Path) -> tuple[Function, dict]:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("an .onnx file needs ONNX Runtime: pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the only common base class of its errors
        raise ValueError(f"ONNX Runtime cannot run '{path}': {error}") from error
    text = session.get_modelmeta().custom_metadata_map.get("atss_d2")
    if not text:
        raise ValueError(f"'{path}' was not exported by tools/export_model.py: no metadata")
    return lambda images: session.run(None, {"images": images}), json.loads(text)


def _load_with_torch(path: Path) -> tuple[Function, dict]:
    from ..export import load_exported
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    detector = load_exported(path)
    return detector, json.loads(detector.metadata.to_json())


def prepare(image: np.ndarray, metadata: dict) -> np.ndarray:
    """Resizes an RGB image (H, W, 3) as Detectron2 does, and transposes it to (1, 3, H, W)."""
    import numpy as np
    from PIL import Image

    height, width = image.shape[:2]
    if metadata["shortest_edge"] is not None:
        short = float(metadata["shortest_edge"])
        long = short / min(width, height) * max(width, height)
        if metadata["max_size"] is not None and long > metadata["max_size"]:
            factor = metadata["max_size"] / long
            short, long = short * factor, long * factor
        sides = int(short + 0.5), int(long + 0.5)
        width, height = sides if width <= height else sides[::-1]
    elif metadata["resize_factor"] is not None:
        factor = metadata["resize_factor"]
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(resized)
    if metadata["input_format"] == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    return pixels.astype(metadata["input_dtype"])


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 if an image could not be read, 2 for a wrong command line."""
    parser = get_parser()
    args = parser.parse_args(argv)
    from ..plain.files import find_images

    paths, problems = find_images(args.images)
    try:
        check_arguments(args, paths)
        if not paths:
            raise ValueError("; ".join(problems))
        check_output(paths, args.output)
        detector = ExportedDetector(args.model)
        make_folder(args.output)
    except EXPECTED as error:
        refuse(parser, error)
    for problem in problems:
        tell(f"error: {problem}")
    if not detector.has_names:
        tell("the names of the classes are unknown to the file, their numbers from 0 are used")
    try:
        num_unreadable = Detecting(detector, args, warn=tell).run(paths, args.output)
    except KeyboardInterrupt:
        print(f"interrupted; what was done is in {args.output}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # for example a full disk
        tell(error)
        return 1
    return 1 if problems or num_unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
