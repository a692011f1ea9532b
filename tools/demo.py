#!/usr/bin/env python
r"""Detect objects in images: annotated pictures and a detections.json, in a folder of their own.

    python tools/demo.py --config-file configs/demo/atss_mobilenetv2_trees.py \
        --weights output/demo/model_final.pth --input a.jpg 'photos/*.png' more/ --output found

Pictures keep their names; those of the same name go to sub-folders named as their own. In
detections.json, "category_id" counts from 0 in the order of the classes, as in Detectron2's
dataset dicts, and "bbox" is [x1, y1, x2, y2] in pixels of the image.
"""

import argparse
import glob
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout

import atss_d2  # noqa: F401  (first: quiet about the deprecations of its dependencies)

# isort: split
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from tqdm import tqdm

from atss_d2 import Predictor
from atss_d2.visualization import draw_detections, output_names, write_image
from atss_d2.warning_filters import filter_third_party_warnings

# What is taken from folders and patterns; a file given by its name is always tried.
_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
_SUFFIXES += (".tif", ".tiff", ".webp")


def get_parser() -> argparse.ArgumentParser:
    """The command line; names of flags as in Detectron2's demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a .py or .yaml config, or its name")
    parser.add_argument("--weights", help="checkpoint; default: the one that the config names")
    parser.add_argument(
        "--input", nargs="+", required=True, help="image files, quoted patterns, folders"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--confidence-threshold",
        type=_probability,
        default=0.5,
        help="least score of a detection (default: %(default)s); the config's own threshold holds "
        "as well",
    )
    parser.add_argument("--device", help="such as cpu or cuda; default: the config's")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="overrides of the config, the last on the line: key=value, for yaml KEY VALUE",
    )
    return parser


def find_images(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Expands files, patterns and folders.

    Returns:
        Paths of files, each once; and a sentence for each input that gives none.
    """
    paths, problems = {}, []
    for name in map(os.path.expanduser, inputs):
        if os.path.isfile(name):
            found = [name]
        else:
            pattern = os.path.join(glob.escape(name), "*") if os.path.isdir(name) else name
            found = sorted(
                path
                for path in glob.glob(pattern, recursive=True)
                if path.lower().endswith(_SUFFIXES) and os.path.isfile(path)
            )
        if not found:
            problem = "holds no image" if os.path.isdir(name) else "does not exist"
            if glob.has_magic(name):
                problem = "matches no image"
            problems.append(f"--input '{name}' {problem}")
        paths.update((os.path.realpath(path), path) for path in found)
    return list(paths.values()), problems


def to_dict(
    file_name: str, image_size: tuple[int, int], instances: Instances, class_names: Sequence[str]
) -> dict:
    """One element of detections.json, best detection first."""
    instances = instances[instances.scores.argsort(descending=True, stable=True)]
    return {
        "file_name": file_name,
        "height": image_size[0],
        "width": image_size[1],
        "detections": [
            {"bbox": box, "score": score, "category_id": c, "category": class_names[c]}
            for box, score, c in zip(
                instances.pred_boxes.tensor.tolist(),
                instances.scores.tolist(),
                instances.pred_classes.tolist(),
            )
        ],
    }


def detect(predictor: Predictor, paths: list[str], output: Path, *, score_thresh: float) -> int:
    """Writes the pictures and detections.json; what is done stays when it is interrupted.

    Returns:
        Number of files that could not be read; a line on standard error names each.
    """
    results, num_unreadable = [], 0
    try:
        # Quiet when standard error is no terminal.
        for path, name in tqdm(
            zip(paths, output_names(paths)), total=len(paths), unit="image", disable=None
        ):
            try:
                image = read_image(path, format="BGR")
            except Exception as error:  # decoders raise all kinds; the other images are fine
                tqdm.write(f"error: cannot read '{path}': {error}", file=sys.stderr)
                num_unreadable += 1
                continue
            instances = predictor(image)
            instances = instances[instances.scores >= score_thresh]
            results.append(to_dict(path, image.shape[:2], instances, predictor.class_names))
            picture = draw_detections(image, instances, class_names=predictor.class_names)
            write_image(output / name, picture)
    finally:
        output.mkdir(parents=True, exist_ok=True)
        (output / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    num_detections = sum(len(result["detections"]) for result in results)
    print(f"{num_detections} detections in {len(results)} images: {output}")
    return num_unreadable


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; 1 when an image could not be used, 2 for a wrong command line."""
    filter_third_party_warnings()
    parser = get_parser()
    args = parser.parse_args(argv)
    paths, problems = find_images(args.input)
    if not paths:
        parser.error("; ".join(problems))
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output '{args.output}' is a file, not a folder")
    inputs = {os.path.realpath(path) for path in paths}
    for name in output_names(paths):
        if os.path.realpath(args.output / name) in inputs:
            parser.error(f"--output would overwrite the image '{args.output / name}'")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    try:
        predictor = Predictor(
            args.config_file, args.weights, device=args.device, overrides=args.opts
        )
    except (OSError, KeyError, ValueError, AssertionError) as error:  # a wrong name or override
        parser.error(str(error.args[0] if isinstance(error, KeyError) else error))
    try:
        num_unreadable = detect(
            predictor, paths, args.output, score_thresh=args.confidence_threshold
        )
    except OSError as error:  # such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if problems or num_unreadable else 0


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
