"""The flags of ``predict`` for many images."""

from __future__ import annotations

import argparse
import glob
import os
from pathlib import Path
from typing import Any

from .processes import shard_here, shard_of


def add_many_arguments(parser: argparse.ArgumentParser, source: Any) -> None:
    """Adds the flags for many images.

    Args:
        parser: The parser of ``predict``.
        source: Its group of inputs.
    """
    source.add_argument(
        "--manifest",
        metavar="FILE",
        help="many images: a file with a path or a JSON object with file_name per line",
    )
    source.add_argument(
        "--merge", type=Path, metavar="FOLDER", help="join the shards of a run over many images"
    )
    group = parser.add_argument_group(
        "many images", "--manifest, or --input with --json-lines; see docs/prediction.md"
    )
    group.add_argument(
        "--json-lines",
        action="store_true",
        help="write no pictures, and a line of JSON per image as soon as it is done",
    )
    group.add_argument(
        "--recursive", action="store_true", help="of folders in --input, take sub-folders as well"
    )
    group.add_argument(
        "--image-root", metavar="FOLDER", help="what paths in the manifest are relative to"
    )
    group.add_argument(
        "--shard",
        type=shard_of,
        metavar="I/N",
        help="do only part I of N, from 0/N on; under torchrun, each process does a part",
    )
    group.add_argument(
        "--num-workers", type=int, metavar="N", help="processes that read images (default: 0)"
    )
    group.add_argument(
        "--retry-bad", action="store_true", help="try images again that could not be read"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start anew instead of going on with --output"
    )


def is_many(args: argparse.Namespace) -> bool:
    """Returns whether the flags ask for the way of many images."""
    return args.json_lines or args.manifest is not None


def check_many_arguments(args: argparse.Namespace) -> None:
    """Checks flags before anything is loaded.

    Raises:
        ValueError: A flag has no effect, or is missing.
    """
    many = is_many(args)
    for flag in ("shard", "num_workers", "retry_bad", "overwrite"):
        if not many and getattr(args, flag) not in (None, False):
            name = "--" + flag.replace("_", "-")
            raise ValueError(f"{name} is for --manifest or --json-lines: add one of them")
    if args.image_root is not None and args.manifest is None:
        raise ValueError("--image-root is for --manifest: leave it out")
    if args.recursive and not args.input:
        raise ValueError("--recursive is for --input: leave it out")
    if not many:
        if args.merge is None and shard_here(None).count > 1:
            raise ValueError("several processes need --manifest or --json-lines: add one of them")
        return
    if args.manifest is None and not args.input:
        raise ValueError("--json-lines is for --input: leave it out")
    if args.manifest is not None and args.image_ids is not None:
        raise ValueError('--image-ids is for --input: write "image_id" into the manifest instead')
    if args.tile_overlap is not None and args.tiles is None:
        raise ValueError("--tile-overlap is for --tiles: give both")
    if args.output is None:
        raise ValueError("many images need --output, a folder for the results")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output '{args.output}' is a file, not a folder")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"--num-workers must be at least 0, got {args.num_workers}")
    for name in map(os.path.expanduser, args.input or []):
        if many and not os.path.exists(name) and not glob.has_magic(name):
            raise ValueError(f"--input '{name}' does not exist")
