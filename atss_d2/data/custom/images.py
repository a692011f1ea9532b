"""Inspects the image files of a data set: whether they are readable, their sizes and modes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# Decoding all images of a large data set would take minutes; the first ones are enough.
MAX_DECODED = 2000
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class ImageFile:
    """An image file, or the reason why it cannot be used.

    Args:
        path: Path of the file.
        problem: Why it cannot be used; "" if it can.
        width: Width in pixels as Detectron2 reads the image, with EXIF rotation applied; 0 if there
            is a problem.
        height: Height in pixels, likewise.
        mode: Pillow's mode, such as ``"RGB"``, ``"L"`` (gray) or ``"I;16"``.
        num_bytes: Size of the file.
    """

    path: Path
    problem: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    num_bytes: int = 0


def inspect_images(paths: Sequence[Path], *, max_decoded: int = MAX_DECODED) -> list[ImageFile]:
    """Opens image files, and decodes the first ``max_decoded`` of them."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # mostly waits for the disk and the codecs
        return list(pool.map(_inspect, paths, (i < max_decoded for i in range(len(paths)))))


def _inspect(path: Path, decode: bool) -> ImageFile:
    if not path.is_file():
        return ImageFile(path, problem="missing")
    try:
        with Image.open(path) as image:
            width, height = image.size
            mode = image.mode
            if image.getexif().get(_EXIF_ORIENTATION) in _TURNED:
                width, height = height, width
            if decode:
                image.load()
    except Exception:  # Pillow's codecs raise OSError, SyntaxError, struct.error and others
        return ImageFile(path, problem="unreadable")
    return ImageFile(path, "", width, height, mode, path.stat().st_size)


def group_equal_files(files: Iterable[ImageFile]) -> list[list[ImageFile]]:
    """Returns groups of two or more files with the same content, regardless of their names."""
    groups = [list(files)]
    # The cheap key first: few files have the same size, and only those are read.
    for key in (lambda file: file.num_bytes, _digest):
        parted = defaultdict(list)
        for number, group in enumerate(groups):
            for file in group:
                parted[number, key(file)].append(file)
        groups = [group for group in parted.values() if len(group) > 1]
    return groups


def _digest(file: ImageFile) -> bytes:
    return hashlib.sha1(file.path.read_bytes(), usedforsecurity=False).digest()
