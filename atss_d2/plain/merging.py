"""Joins the shards of a run over many images to one file in COCO's format."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .coco import annotation
from .files import replacing
from .json_lines import parse_line
from .shard import Shard
from .shards import RUN_NAME, read_run

_BAD = -2  # in place of the position of a line: the image could not be read
_MISSING = -1


def merge_shards(folder: Path, output: Path) -> tuple[int, int, int]:
    """Writes one file with the detections of all shards, in the order of the list of images.

    Neither the results nor the list are held in memory.

    Args:
        folder: The folder of the run.
        output: The file to write, as ``CocoResults`` writes it.

    Returns:
        The number of images, of detections, and of images that could not be read.

    Raises:
        ValueError: There is no run in the folder, or shards of it are not complete.
    """
    run = read_run(folder)
    if run is None:
        raise ValueError(f"'{folder}' has no {RUN_NAME}: it is not the --output of such a run")
    settings = run["settings"]
    total, shards = (
        settings["images"],
        [Shard(i, settings["shards"]) for i in range(settings["shards"])],
    )
    positions = np.full(total, _MISSING, np.int64)
    for shard in shards:
        _find_lines(shard.detections(folder), shard, positions, is_bad=False)
        _find_lines(shard.bad_images(folder), shard, positions, is_bad=True)
    _check_complete(shards, positions, folder)
    files = [
        open(path, "rb") if (path := shard.detections(folder)).exists() else None  # noqa: SIM115
        for shard in shards
    ]
    try:
        with (
            replacing(output) as temporary,
            tempfile.TemporaryFile(dir=output.parent) as boxes,
            open(temporary, "wb") as merged,
        ):
            return _write(merged, boxes, files, positions, run["categories"])
    finally:
        for file in files:
            if file is not None:
                file.close()


def _find_lines(path: Path, shard: Shard, positions: np.ndarray, *, is_bad: bool) -> None:
    """Writes down where the line of each image begins."""
    if not path.exists():
        return
    position = 0
    with open(path, "rb") as file:
        for line in file:
            row = parse_line(line)
            index = row.get("index") if row else None
            is_ours = type(index) is int and index % shard.count == shard.index
            if is_ours and 0 <= index < len(positions) and positions[index] == _MISSING:
                positions[index] = _BAD if is_bad else position
            position += len(line)


def _check_complete(shards: list[Shard], positions: np.ndarray, folder: Path) -> None:
    lacks = []
    for shard in shards:
        num_missing = int((positions[shard.index :: shard.count] == _MISSING).sum())
        if num_missing:
            of = shard.num_images(len(positions))
            lacks.append(f"{shard} lacks {num_missing} of {of} images")
    if lacks:
        more = f" and {len(lacks) - 10} more shards are not complete" if len(lacks) > 10 else ""
        raise ValueError(
            f"'{folder}' is not complete: {'; '.join(lacks[:10])}{more}; run the command of these "
            "shards again, it goes on where it stopped"
        )


def _write(
    merged: BinaryIO,
    boxes: BinaryIO,
    files: list[BinaryIO | None],
    positions: np.ndarray,
    categories: list[dict[str, Any]],
) -> tuple[int, int, int]:
    num_images = num_boxes = num_bad = 0
    merged.write(b'{\n"images": [')
    for index, position in enumerate(positions):
        if position == _BAD:
            num_bad += 1
            continue
        file = files[index % len(files)]
        file.seek(position)
        row = json.loads(file.readline())
        found = [row.pop(key) for key in ("boxes", "scores", "category_ids")]
        del row["index"]
        image = {"id": row.pop("image_id"), **row}
        merged.write(_separator(num_images) + _encode(image))
        num_images += 1
        for box, score, category_id in zip(*found):
            num_boxes += 1
            item = annotation(num_boxes, image["id"], category_id, box, score)
            boxes.write(_separator(num_boxes - 1) + _encode(item))
    merged.write(_end(num_images) + b',\n"categories": [')
    for i, category in enumerate(categories):
        merged.write(_separator(i) + _encode(category))
    merged.write(_end(len(categories)) + b',\n"annotations": [')
    boxes.seek(0)
    shutil.copyfileobj(boxes, merged, 1 << 20)
    merged.write(_end(num_boxes) + b"\n}\n")
    merged.flush()
    os.fsync(merged.fileno())
    return num_images, num_boxes, num_bad


def _encode(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is not Unicode
        return json.dumps(value).encode()


def _separator(num_before: int) -> bytes:
    return b",\n" if num_before else b"\n"


def _end(num: int) -> bytes:
    return b"\n]" if num else b"]"
