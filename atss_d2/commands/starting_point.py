"""Chooses the model and the initial weights of a new project."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .doors import checkout

# Names of the conventions whose weights are converted on loading.
FOREIGN = ("mmdet", "authors")


def choose_model(args: argparse.Namespace, *, has_gpu: bool) -> tuple[str, str]:
    """Returns the model and the reason for choosing it."""
    if args.model:
        return args.model, "as --model says"
    if args.weights and args.weights.startswith(tuple(f"{name}://" for name in FOREIGN)):
        return "r50", "the model of --weights"
    if has_gpu:
        return "r50", "there is a GPU; --model mobilenetv2 is smaller and faster"
    return "mobilenetv2", "there is no GPU; --model r50 is larger and would take many hours"


def find_weights(args: argparse.Namespace, model: str) -> tuple[Path | str | None, str]:
    """Returns the initial weights (None: the config's own), and a warning if they are missing."""
    if args.weights is None:
        return find_backbone(args.output) if model == "mobilenetv2" else (None, "")
    name, _, path = args.weights.rpartition("://")
    if not name:
        return Path(path), ""
    # A prefix may also precede a URL, which must stay as it is: mmdet://https://...
    is_file = name in FOREIGN
    return (f"{name}://{os.path.abspath(path)}" if is_file else args.weights), ""


def find_backbone(folder: Path) -> tuple[Path | None, str]:
    """Finds or fetches the small model's ImageNet weights.

    Returns:
        The file and an empty string, or None and a sentence that says why it could not be fetched.
    """
    from ..data import DataError, dataset_root, prepare_pretrained
    from ..data.embedded.pretrained import PRETRAINED_FILE

    root_here = checkout()
    for root in (dataset_root(), folder, *([root_here / "datasets"] if root_here else [])):
        if (root / PRETRAINED_FILE).is_file():
            return root / PRETRAINED_FILE, ""
    print("\nFetching the ImageNet weights of MobileNetV2 (8 MB) ...", flush=True)
    try:
        return prepare_pretrained(folder), ""
    except DataError as error:
        return None, (
            f"the ImageNet weights of MobileNetV2 could not be fetched ({error}); before you "
            "train, run `python tools/prepare_data.py --pretrained` where they can be, and set "
            "train.init_checkpoint to the file that it names"
        )
