"""The part of ``predict`` for many images: shards, JSON lines, and going on after a kill."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
from typing import TYPE_CHECKING, Any

from ..plain.manifest import Manifest, manifest_line
from ..plain.merging import merge_shards
from ..plain.shards import ShardResults, claim, shard_lock
from ..plain.starters import is_restart
from .detecting import JSON_NAME, make_folder
from .errors import EXPECTED, refuse, tell
from .predictor_detector import load
from .processes import device_here, shard_here
from .shard_run import ShardRun

if TYPE_CHECKING:
    from torch import nn


def merge(args: argparse.Namespace) -> int:
    """Joins the shards in ``--merge`` to a file in COCO's format."""
    output = args.output or args.merge / JSON_NAME
    if output.is_dir():
        output = output / JSON_NAME
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        num_images, num_boxes, num_bad = merge_shards(args.merge, output)
    except (OSError, ValueError) as error:
        tell(error)
        return 1
    print(f"{num_boxes} detections in {num_images} images: {output}")
    if num_bad:
        tell(f"{num_bad} images could not be read, {args.merge}/bad_images.*.jsonl lists them")
    return 0


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Does the shard of this process.

    Args:
        parser: Names the command in messages.
        args: Parsed arguments, checked by ``check_many_arguments``.

    Returns:
        1 if an image could not be read, 128 + a signal's number after it.
    """
    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    from ..warning_filters import filter_third_party_warnings

    # isort: split
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from ..config import load_config, load_view

    filter_third_party_warnings()

    shard, stack = shard_here(args.shard), contextlib.ExitStack()
    try:
        source = functools.partial(_list_of_inputs, args)
        if args.manifest is not None:
            source = Manifest(args.manifest)
        view = load_view(load_config(args.config_file), args.opts, device=args.device)
        view.apply([], device_here(view.get(view.device_key)))
        detector = load(args, view.cfg)
        make_folder(args.output)
        settings = {
            "config": view.prediction_settings,
            "weights_sha256": _hash_of_weights(detector.predictor.model),
            "confidence_threshold": args.confidence_threshold,
            "tiles": args.tiles,
            "tile_overlap": args.tile_overlap,
            "images_from": _images_from(args, source),
        }
        information = {
            "categories": [{"id": x["id"], "name": x["name"]} for x in detector.categories],
            "config_file": args.config_file,
            "weights": args.weights or view.weights,
        }
        overwrite = args.overwrite and not is_restart(os.environ)
        manifest = claim(args.output, shard, settings, information, source, overwrite=overwrite)
        stack.enter_context(shard_lock(args.output, shard))
        results = ShardResults(args.output, shard, manifest.num_images, retry_bad=args.retry_bad)
    except (*EXPECTED, RuntimeError, SyntaxError, OmegaConfBaseException, YAMLError) as error:
        refuse(parser, error)
    with stack:
        return ShardRun(args, shard, manifest, detector, results).go()


def _list_of_inputs(args: argparse.Namespace) -> str:
    """Returns the list of the images in ``--input``, for many processes and for later."""
    from ..plain.coco import ImageIds
    from ..plain.files import find_images

    paths, problems = find_images(args.input, recursive=args.recursive)
    if problems:
        raise ValueError("; ".join(f"--input {problem}" for problem in problems))
    ids = None if args.image_ids is None else ImageIds(args.image_ids)
    return "".join(
        manifest_line(path, **({} if ids is None else {"image_id": ids[path]})) for path in paths
    )


def _images_from(args: argparse.Namespace, source: Any) -> dict[str, Any]:
    """Returns what decides which files the list means."""
    if args.manifest is None:
        found = {"input": args.input, "recursive": args.recursive, "image_ids": args.image_ids}
        is_absolute = all(map(os.path.isabs, args.input))
    else:
        found = {}
        is_absolute = not args.image_root and os.path.isabs(next(source.rows())["file_name"])
    return found if is_absolute else {**found, "folder": os.path.abspath(args.image_root or "")}


def _hash_of_weights(model: nn.Module) -> str:
    """Returns the hash of a model's weights and buffers, wherever they come from."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
