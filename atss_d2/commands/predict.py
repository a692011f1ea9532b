r"""Detects objects in images, a video or a webcam stream.

    python tools/demo.py --config-file configs/demo/atss_mobilenetv2_trees.py \
        --weights output/demo/model_final.pth --input a.jpg 'photos/*.png' more/ --output found
    python tools/demo.py --config-file ... --weights ... --input aerial.png --output found --tiles
    python tools/demo.py --config-file ... --weights ... --video-input a.mp4 --output b.mp4
    python tools/demo.py --config-file ... --weights ... --manifest list.txt --output found

Flags are those of Detectron2's demo. Without --output, pictures are shown in a window: press Esc to
stop, any other key for the next image.

--manifest and --json-lines are for many images: no pictures, several processes, and the same
command goes on after a kill.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

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
from .many_arguments import add_many_arguments, check_many_arguments, is_many
from .predictor_detector import load

VIDEO_HELP = """
For a video, --output is the file to write (.mp4, .mkv, .mov, .avi) or a folder; the detections go
to a .json file beside the video, whose images have a "frame_index".
"""


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser; flags have the names of Detectron2's demo."""
    parser = Parser(
        description=__doc__,
        epilog=OUTPUT_HELP + VIDEO_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", help="a .py or .yaml config, or its name")
    parser.add_argument("--weights", help="checkpoint; default: the one that the config names")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="image files, quoted patterns, folders")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", nargs="?", const=0, type=int, metavar="N", help="a camera, by default 0"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the results (of a video: file or folder); default: show them in a window",
    )
    add_many_arguments(parser, source)
    add_arguments(parser)
    add_image_ids(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help="tiles, or of many images those of one size, that run at once (default: %(default)s)",
    )
    parser.add_argument("--device", help="such as cpu or cuda; default: the config's")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY=VALUE",
        help="overrides of the config, the last on the line: key=value, for yaml KEY VALUE",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        1 if an image could not be used, 2 for a wrong command line, 130 if interrupted.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.merge is None and args.config_file is None:
        parser.error("the following arguments are required: --config-file")
    # Not `from . import`, which imports torch as well: --merge does not need it.
    from ..plain.files import find_images
    from .predict_many import merge, run

    try:
        check_many_arguments(args)
        if args.image_ids is not None and not args.input:
            raise ValueError("--image-ids is for --input: leave it out")
        if args.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    except ValueError as error:
        refuse(parser, error)
    if args.merge is not None:
        return merge(args)
    if is_many(args):
        return run(parser, args)
    from . import video

    paths, problems = find_images(args.input or [], recursive=args.recursive)
    try:
        check_arguments(args, paths)
        if args.input:
            if not paths:
                raise ValueError("; ".join(f"--input {problem}" for problem in problems))
            if args.output is not None:
                check_output(paths, args.output)
        else:
            video.check_arguments(args)
        if args.output is None:
            video.require_display()
    except ValueError as error:
        refuse(parser, error)
    for problem in problems:
        tell(f"error: --input {problem}")

    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    from ..warning_filters import filter_third_party_warnings

    # isort: split
    from omegaconf.errors import OmegaConfBaseException
    from tqdm import tqdm
    from yaml import YAMLError

    filter_third_party_warnings()
    try:
        detector = load(args)
        if args.input and args.output is not None:
            make_folder(args.output)
    except (*EXPECTED, RuntimeError, SyntaxError, OmegaConfBaseException, YAMLError) as error:
        refuse(parser, error)

    def warn(sentence: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):  # not into the progress bar
            tell(sentence)

    detecting = Detecting(detector, args, warn=warn)
    try:
        if not args.input:
            video.run(detecting, args)
            return 0
        num_unreadable = detecting.run(
            paths,
            args.output,
            show=video.show_until_key,
            progress=functools.partial(tqdm, unit="image", disable=None),
        )
    except KeyboardInterrupt:
        where = f"; what was done is in {args.output}" if args.output is not None else ""
        print(f"interrupted{where}", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError) as error:  # for example a full disk or a missing camera
        tell(error)
        return 1
    return 1 if problems or num_unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
