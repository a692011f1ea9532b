"""Writes a config for your own data set, and reports its contents and its problems.

    python tools/start_project.py --train train.json images --val val.json images --output widgets

A data set is a COCO JSON and its image folder, or a single folder: in Pascal VOC or YOLO format
(these need `pip install 'atss_d2[convert]'`), or with a COCO JSON in it. Without --val, some of
the training images are held out for validation. The output folder will contain

    config.py   about twenty lines that you may change, each choice with its reason
    data.png    images with their boxes, object sizes, classes
    train.json, val.json   if the data set had to be split, converted or fixed

The last lines of output are the next three commands: train, predict, export.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .doors import program, quote_value, relative
from .errors import EXPECTED, Parser, fail
from .starting_point import FOREIGN, choose_model, find_weights

if TYPE_CHECKING:
    from ..data.custom.checking import Checked

_NUM_PICTURED = 14
_NUM_PREDICTED = 4


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train",
        nargs="+",
        required=True,
        metavar="PATH",
        help="a COCO JSON and the folder of its images; or a folder",
    )
    parser.add_argument(
        "--val",
        nargs="+",
        metavar="PATH",
        help="the same for validation; default: a part of --train, chosen by image",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the project")
    parser.add_argument(
        "--model",
        choices=("mobilenetv2", "r50"),
        help="default: r50 with a GPU, mobilenetv2 without",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="fine-tune a trained detector: a checkpoint of ours, or an R-50 of another "
        "implementation, mmdet://FILE or authors://FILE; default: an ImageNet backbone",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="part of the images for validation, without --val (default: 0.2)",
    )
    parser.add_argument("--seed", type=int, help="of that choice (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier call"
    )
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Checks the flags and fills in their defaults.

    Raises:
        ValueError: Flags conflict or have wrong values; the message names them.
    """
    for flag, value in (("--val-fraction", args.val_fraction), ("--seed", args.seed)):
        if args.val and value is not None:
            raise ValueError(f"{flag} is for a split, but --val gives a validation set: drop one")
    args.val_fraction = 0.2 if args.val_fraction is None else args.val_fraction
    args.seed = 0 if args.seed is None else args.seed
    if not 0 < args.val_fraction < 1:
        raise ValueError(f"--val-fraction must be between 0 and 1, got {args.val_fraction}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output '{args.output}' is a file: give a folder")
    foreign, _, path = (args.weights or "").rpartition("://")
    if foreign in FOREIGN and args.model == "mobilenetv2":
        raise ValueError(f"--weights {args.weights} is for --model r50, not for mobilenetv2")
    if args.weights and foreign in (*FOREIGN, "") and not os.path.isfile(path):
        raise ValueError(f"--weights: there is no file '{path}'")
    written = args.output / "config.py"
    if written.exists() and not args.overwrite:
        raise ValueError(
            f"'{written}' exists: give another --output, or --overwrite to replace it and its data "
            "files"
        )
    inputs = {os.path.realpath(path) for path in (*args.train, *(args.val or ()))}
    for name in ("train.json", "val.json"):
        if os.path.realpath(args.output / name) in inputs:
            raise ValueError(
                f"'{args.output / name}' would be replaced by what is made of it: give another "
                "--output"
            )


def read_parts(args: argparse.Namespace) -> tuple[Checked, Checked]:
    """Reads and checks the data set, and splits it if there is no ``--val``.

    Raises:
        DataError: A data set cannot be used.
    """
    from ..data import DataError
    from ..data.custom import checking, images, reading, splitting

    train = checking.check(reading.read_source(args.train))
    if args.val:
        val = checking.check(reading.read_source(args.val))
        checking.unite_categories(train, val)
        checking.report_shared_images(train, val)
        return train, val
    groups = images.group_equal_files(train.files.values())
    ids = {id(file): i for i, file in train.files.items()}
    groups = [[ids[id(file)] for file in group] for group in groups]
    try:
        parts = splitting.split_images(
            train.content, fraction=args.val_fraction, seed=args.seed, groups=groups
        )
    except ValueError as error:
        raise DataError(f"'{train.source.place}': {error}") from None
    train, val = checking.divide(train, *parts)
    checking.report_empty_classes(train, val)
    return train, val


def write_json(part: Checked, path: Path) -> Path:
    """Returns the JSON file of a part: its own or, if the part was changed, a newly written one."""
    import json

    if not part.is_changed:
        return part.source.json_file
    _write(path, json.dumps(part.content, ensure_ascii=False))
    return path


def _write(path: Path, text: str) -> None:
    from ..plain.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_page(train: Checked, path: Path, **options) -> None:
    """Writes ``data.png`` with images that together show many classes."""
    import numpy as np

    from ..data.custom.statistics import choose_examples
    from ..visualization.data_page import LabeledImage, draw_data_page

    column = {category["id"]: k for k, category in enumerate(train.categories)}
    shown = choose_examples(train.content, _NUM_PICTURED)
    annotations = {image_id: [] for image_id in shown}
    for annotation in train.content["annotations"]:
        if annotation["image_id"] in annotations:
            annotations[annotation["image_id"]].append(annotation)
    images = [
        LabeledImage(
            train.files[image_id].path,
            np.array([a["bbox"] for a in found], np.float64).reshape(-1, 4),
            np.array([column[a["category_id"]] for a in found], np.int64),
            np.array([bool(a["iscrowd"]) for a in found], bool),
        )
        for image_id, found in annotations.items()
    ]
    draw_data_page(path, images, **options)


def next_commands(args: argparse.Namespace, val: Checked) -> list[tuple[str, str]]:
    """Returns the next three commands as typed in the current folder, each after its name."""
    config, output = relative(args.output / "config.py"), args.output / "output"
    weights = relative(output / "model_best.pth")
    paths = [file.path for file in val.files.values()]
    if args.val:  # the images' folder
        paths = [Counter(path.parent for path in paths).most_common(1)[0][0]]
    value = weights if shlex.quote(weights) == weights else quote_value(weights)
    inputs = [relative(path) for path in paths[:_NUM_PREDICTED]]
    predictions, export = (relative(args.output / name) for name in ("predictions", "export"))
    flags = ["--config-file", config]
    commands = (
        ("train", flags),
        ("predict", [*flags, "--weights", weights, "--input", *inputs, "--output", predictions]),
        (
            "export",
            [*flags, "--format", "onnx", "--output", export, f"train.init_checkpoint={value}"],
        ),
    )
    return [(name, shlex.join([*program(name), *arguments])) for name, arguments in commands]


def run(args: argparse.Namespace) -> None:
    """Reads and checks the data set, chooses settings and writes the project.

    Raises:
        DataError: The data cannot be used; nothing was written.
        ValueError: Flags conflict.
        OSError: A file cannot be written.
    """
    check_flags(args)
    import torch

    from ..checkpoint.earlier_run import holds_a_run
    from ..data.custom import settings as choices
    from ..data.custom.statistics import count, describe
    from .project_config import config_text

    print("Reading the data set ...", flush=True)
    train, val = read_parts(args)
    statistics, val_statistics = count(train.content), count(val.content)
    has_gpu = torch.cuda.is_available()
    model, reason = choose_model(args, has_gpu=has_gpu)
    settings = choices.choose(
        model, statistics, val_statistics, has_gpu=has_gpu, is_trained=args.weights is not None
    )

    print(f"\n{describe(statistics, val_statistics)}")
    warnings = []
    for name, part in (("train" if args.val else "data set", train), ("val", val)):
        warnings += [f"{name}: {finding}" for finding in part.findings]
    for name, part in (("train", statistics), ("val", val_statistics)):
        warnings.append(choices.describe_too_large(part, settings, name))
    args.output.mkdir(parents=True, exist_ok=True)
    weights, problem = find_weights(args, model)
    warnings = [text for text in [*warnings, problem] if text]
    print(f"\n{'Warnings:' if warnings else 'Nothing odd was found.'}")
    for text in warnings:
        print(f"  - {text}")

    files = [
        (write_json(part, args.output / f"{name}.json"), part.source.image_root)
        for name, part in (("train", train), ("val", val))
    ]
    num_classes = len(train.categories)
    counts = (
        f"{num_classes} class{'es' * (num_classes != 1)}, {len(train.files)} images to train on"
    )
    counts += f", {len(val.files)} to validate"
    draw_page(
        train,
        args.output / "data.png",
        title=f"{args.output.resolve().name}: {counts}",
        class_names=[category["name"] for category in train.categories],
        sizes={"train": statistics.sizes, "val": val_statistics.sizes},
        class_counts={
            "train": statistics.objects_per_class,
            "val": val_statistics.objects_per_class,
        },
        resize_factor=choices.median_factor(statistics, settings),
        anchor_sides=choices.anchor_sides(settings),
    )
    commands = next_commands(args, val)
    text = config_text(
        args.output,
        settings,
        train.categories,
        train=files[0],
        val=files[1],
        title=f"{counts}. Yours to change.",
        command=commands[0][1],
        init_checkpoint=weights,
    )
    _write(args.output / "config.py", text)
    print(f"\nModel: {model} ({reason})")
    print("Written:")
    written = [path for path, _ in files if path.parent.resolve() == args.output.resolve()]
    for path in (*written, args.output / "data.png", args.output / "config.py"):
        print(f"  {relative(path)}")
    if holds_a_run(args.output / "output"):  # of the project that was replaced
        commands[0] = ("train", f"{commands[0][1]} --overwrite")
    print("\nNext:")
    for name, command in commands:
        print(f"  # {name}\n  {command}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; reports wrong data or arguments in one sentence."""
    parser = get_parser()
    args = parser.parse_args(argv)
    from ..data import DataError
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    try:
        run(args)
    except (*EXPECTED, DataError) as error:
        fail(parser, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
