"""Measures how long the checks of a data set take, and what that makes for COCO.

python -m tests.data.measure            # 4,000 JPEGs, a JSON of 118,287 images, 860,001 boxes
"""

from __future__ import annotations

import functools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atss_d2.data.checks.dataset import check_coco, check_coco_file
from atss_d2.data.checks.json_file import read_json
from atss_d2.data.checks.probing import probe_files

NUM_FILES, NUM_IMAGES, NUM_BOXES = 4000, 118287, 860001


def write_images(folder: Path) -> list[str]:
    """Writes JPEGs of about 80 KB, each of its own content."""
    rng, paths = np.random.default_rng(0), []
    noise = rng.integers(0, 255, (20, 60, 80, 3)).astype(np.uint8)
    pictures = [Image.fromarray(x).resize((640, 480)) for x in noise]
    for i in range(NUM_FILES):
        path = folder / f"{i:06d}.jpg"
        pictures[i % 20].save(path, quality=75 + i // 20 % 20, comment=str(i))
        paths.append(str(path))
    return paths


def write_json(path: Path) -> None:
    """Writes COCO's numbers of images and boxes, with a polygon for each."""
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(1, NUM_IMAGES + 1, NUM_BOXES)).tolist()
    sides = rng.uniform(5, 200, (NUM_BOXES, 2))
    starts = rng.uniform(0, 1, (NUM_BOXES, 2)) * ((640, 480) - sides)
    annotations = [
        {
            "id": i + 1,
            "image_id": owner,
            "category_id": i % 80 + 1,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for i, (owner, (x, y), (w, h)) in enumerate(
            zip(owners, starts.round(2).tolist(), sides.round(2).tolist())
        )
    ]
    images = [
        {"id": i + 1, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480}
        for i in range(NUM_IMAGES)
    ]
    categories = [{"id": i + 1, "name": str(i)} for i in range(80)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def timed(name: str, function: Callable[[], Any], files: int = 0) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    text = f"{name}: {wall:.2f} s, {cpu:.2f} s of a core"
    if files:
        rates = f"{files / wall:,.0f} files a second"
        text += f"; {rates}: {NUM_IMAGES:,} in {NUM_IMAGES * wall / files:.0f} s"
        text += f", {NUM_IMAGES * cpu / files:.0f} s of a core"
    print(text, flush=True)
    return result


def forget(paths: list[str]) -> None:
    """Drops files from the system's memory, so that they are read from the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ATSS_D2_CACHE"] = str(Path(folder) / "cache")
        images = Path(folder) / "images"
        images.mkdir()
        paths = write_images(images)
        forget(paths)
        timed("headers, from the disk", lambda: probe_files(paths), NUM_FILES)
        timed("headers, again", lambda: probe_files(paths), NUM_FILES)
        timed("headers, no cache", lambda: probe_files(paths, cache=False), NUM_FILES)
        timed("--full", lambda: probe_files(paths, full=True), NUM_FILES)
        file = Path(folder) / "coco.json"
        write_json(file)
        content = timed("JSON: parse", lambda: read_json(file))
        timed("JSON: check", functools.partial(check_coco, content, str(file), folder))
        del content
        timed("JSON: first start", lambda: check_coco_file(str(file), folder))
        timed("JSON: next start", lambda: check_coco_file(str(file), folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory: {peak:.1f} GB, with the generated JSON")


if __name__ == "__main__":
    main()
