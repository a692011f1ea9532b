#!/usr/bin/env python
r"""Detects objects with an exported file: pictures and a detections.json, in a folder of their own.

    python tools/predict_exported.py output/export/model.onnx a.jpg b.jpg --output found

An .onnx file needs onnxruntime, numpy and Pillow, nothing else; other formats need torch,
torchvision and this package. How to prepare images and the names of the classes come out of the
file. In detections.json, "bbox" is [x, y, width, height] in pixels of the image, as in COCO's
results; "category_id" counts from 0 in the order of the classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

# Takes images (N, 3, H, W), gives boxes (N, D, 4), scores, classes (N, D) and numbers (N,).
Detector = Callable[[np.ndarray], "tuple[np.ndarray, ...]"]
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a file that tools/export_model.py wrote")
    parser.add_argument("images", nargs="+", type=Path, metavar="image")
    parser.add_argument(
        "--output", type=Path, default=Path("output/predictions"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=_probability,
        default=0.5,
        help="least score of a detection (default: %(default)s); the file's own holds as well",
    )
    return parser


def load(path: Path) -> tuple[Detector, dict]:
    """Loads an exported file.

    Returns:
        A function of images, and the metadata of the file.

    Raises:
        ValueError: It is none of ours.
        ImportError: What the format needs is not installed.
    """
    if not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    if path.suffix == ".onnx":
        return _load_onnx(path)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout
    from atss_d2.export import load_exported
    from atss_d2.warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    detector = load_exported(path)
    return detector, json.loads(detector.metadata.to_json())


def _load_onnx(path: Path) -> tuple[Detector, dict]:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("an .onnx file needs ONNX Runtime: pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common but this
        raise ValueError(f"ONNX Runtime cannot run '{path}': {error}") from error
    text = session.get_modelmeta().custom_metadata_map.get("atss_d2")
    if not text:
        raise ValueError(f"'{path}' was not exported by tools/export_model.py: no metadata")
    return lambda images: session.run(None, {"images": images}), json.loads(text)


def prepare(image: Image.Image, metadata: dict) -> np.ndarray:
    """Resizes an RGB image as Detectron2 does, and makes it (1, 3, H, W)."""
    width, height = image.size
    if metadata["shortest_edge"] is not None:
        short = float(metadata["shortest_edge"])
        long = short / min(image.size) * max(image.size)
        if metadata["max_size"] is not None and long > metadata["max_size"]:
            factor = metadata["max_size"] / long
            short, long = short * factor, long * factor
        sides = int(short + 0.5), int(long + 0.5)
        width, height = sides if width <= height else sides[::-1]
    elif metadata["resize_factor"] is not None:
        factor = metadata["resize_factor"]
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    if metadata["input_format"] == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    return pixels.astype(metadata["input_dtype"])


def detect(detector: Detector, metadata: dict, image: Image.Image) -> list[dict]:
    """Detections in an RGB image, best first."""
    inputs = prepare(image, metadata)
    boxes, scores, classes, num_detections = (x[0] for x in detector(inputs))
    boxes, scores, classes = (x[:num_detections] for x in (boxes, scores, classes))
    if not metadata["with_nms"]:
        keep = nms(boxes, scores, classes, metadata["iou_thresh"])[: metadata["max_detections"]]
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
    boxes = boxes * np.tile(np.divide(image.size, inputs.shape[:1:-1]), 2)
    return [
        {
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
            "category_id": c,
            "category": metadata["class_names"][c],
        }
        for (x1, y1, x2, y2), score, c in zip(boxes.tolist(), scores.tolist(), classes.tolist())
    ]


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, thresh: float) -> np.ndarray:
    """Indices of boxes that overlap no better box of their class, best first; for raw outputs."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(
            boxes[best, :2], boxes[order, :2]
        )
        overlaps = sides.clip(min=0).prod(axis=1)
        # As a product, so that nothing is divided by areas of 0.
        is_double = overlaps > thresh * (areas[best] + areas[order] - overlaps)
        order = order[~(is_double & (classes[order] == classes[best]))]
    return np.array(keep, dtype=np.int64)


def draw(image: Image.Image, detections: list[dict]) -> Image.Image:
    """A copy with boxes, class names and scores in per cent."""
    image = image.copy()
    canvas = ImageDraw.Draw(image)
    for detection in reversed(detections):  # the best on top
        x, y, width, height = detection["bbox"]
        colour = _COLOURS[detection["category_id"] % len(_COLOURS)]
        canvas.rectangle((x, y, x + width, y + height), outline=colour, width=2)
        text = f"{detection['category']} {detection['score']:.0%}"
        left, top, right, bottom = canvas.textbbox((x, y), text, anchor="lb")
        canvas.rectangle((left, top, right, bottom), fill=colour)
        canvas.text((x, y), text, fill="white", anchor="lb")
    return image


def output_names(paths: list[Path]) -> list[str]:
    """Names of pictures, all different: PNG, which every image can be written as."""
    names: list[str] = []
    for path in paths:
        name, number = f"{path.name}.png", 1
        while name.casefold() in (other.casefold() for other in names):
            number += 1
            name = f"{path.name}_{number}.png"
        names.append(name)
    return names


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; 1 when an image could not be read, 2 for a wrong command line."""
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        detector, metadata = load(args.model)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    results, num_unreadable = [], 0
    for path, name in zip(args.images, output_names(args.images)):
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, ValueError) as error:
            print(f"error: cannot read '{path}': {error}", file=sys.stderr)
            num_unreadable += 1
            continue
        detections = detect(detector, metadata, image)
        detections = [x for x in detections if x["score"] >= args.confidence_threshold]
        results.append(
            {
                "file_name": str(path),
                "height": image.height,
                "width": image.width,
                "detections": detections,
            }
        )
        draw(image, detections).save(args.output / name)
    (args.output / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    total = sum(len(result["detections"]) for result in results)
    print(f"{total} detections in {len(results)} images: {args.output}")
    return 1 if num_unreadable else 0


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
