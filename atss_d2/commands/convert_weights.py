r"""Converts weights of the authors' release or of mmdetection to our format.

    python tools/convert_weights.py atss_r50_fpn_1x_coco.pth output/mmdet_R_50.pth

Also writes a config next to the weights, output/mmdet_R_50.py, with which they reproduce the
detections of the original implementation. Use it like any other config:

    python train_net.py --config-file output/mmdet_R_50.py --eval-only
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from .errors import EXPECTED, Parser, tell

_REFUSED = ("missing", "unexpected", "misshapen")
# Copied from atss_d2.checkpoint.CONVENTIONS, which takes seconds to import; the detectors from
# atss_d2.checkpoint.mmdet_heads.
_CONVENTIONS = ("auto", "authors", "mmdet")
_DETECTORS = ("auto", "atss", "gfl", "paa", "ddod", "vfnet", "tood")


class _OldFlag(argparse.Action):
    """Accepts a flag under its former name, with a note."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(f"note: {option_string} is now --{self.dest}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="file of the other implementation")
    parser.add_argument(
        "output", type=Path, help="file to write, .pth or .safetensors; and .py, its config"
    )
    parser.add_argument(
        "--convention",
        choices=_CONVENTIONS,
        default="auto",
        help="the implementation that wrote the file (default: recognized by the names in it)",
    )
    parser.add_argument(
        "--recipe",
        dest="convention",
        choices=_CONVENTIONS,
        action=_OldFlag,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--detector",
        choices=_DETECTORS,
        default="auto",
        help="the detector of mmdetection, where the names in a file do not tell it "
        "(default: recognized by the names in it)",
    )
    parser.add_argument(
        "--to", choices=("pth", "safetensors"), help="format (default: the suffix of the output)"
    )
    parser.add_argument(
        "--regression",
        choices=("box", "point"),
        default="box",
        help="what the authors' model was trained to regress from, which its file does not tell "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--weights-only-parts",
        action="store_true",
        help="take the weights of a file that holds other objects as well, such as a training "
        "checkpoint of mmdetection; no code in it is executed (default with --convention mmdet)",
    )
    parser.add_argument("--quiet", action="store_true", help="do not list what became of every key")
    return parser


def run(args: argparse.Namespace) -> None:
    """Converts a file.

    Raises:
        CheckpointError: The source is refused or damaged, or does not fit the model.
        ValueError: Flags conflict.
        OSError: A file does not exist or cannot be written.
    """
    from ..checkpoint import (
        CONVENTIONS,
        CheckpointError,
        ConversionError,
        convert_state_dict,
        load_file,
        save_file,
    )
    from ..checkpoint.config_file import write_config

    output = args.output if args.to is None else args.output.with_suffix(f".{args.to}")
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"the output must end in .pth or .safetensors, or give --to: '{output}'")
    if output.resolve() == args.source.resolve():
        raise ValueError(f"the output would take the place of the source, '{args.source}'")
    weights_only_parts = args.weights_only_parts or args.convention == "mmdet"
    try:
        checkpoint = load_file(args.source, weights_only_parts=weights_only_parts)
        weights, report = convert_state_dict(checkpoint, args.convention, detector=args.detector)
    except ConversionError as error:
        if not args.quiet and error.report.count(*_REFUSED):
            print(f"{error.report.key_table(_REFUSED)}\n")
        raise CheckpointError(f"'{args.source}': {error}") from None
    if args.regression == "point":
        if report.convention != "authors":
            raise ValueError(
                f"--regression point: {CONVENTIONS[report.convention].title} has no such model"
            )
        report = report.from_points()
    if not args.quiet:
        print(f"{report.key_table()}\n")
    print(f"{report.config_table()}\n\n{report}\n")
    save_file(weights, output, metadata=report.metadata())
    config = write_config(output, report)
    print(f"Weights: {output}\nConfig: {config}")
    print(f"Check: python train_net.py --config-file {shlex.quote(str(config))} --eval-only")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; reports problems with files or arguments in one sentence."""
    args = get_parser().parse_args(argv)
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    try:
        run(args)
    except EXPECTED as error:
        tell(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
