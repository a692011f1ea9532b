"""Finds image files, names annotated pictures, and writes files."""

from __future__ import annotations

import glob
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

# Suffixes that Pillow reads and writes with full colors. The values are options of `save`: no
# chroma subsampling, which would blur lines of one pixel.
_WRITABLE = {
    ".bmp": {},
    ".jpeg": {"quality": 92, "subsampling": 0},
    ".jpg": {"quality": 92, "subsampling": 0},
    ".png": {},
    ".tif": {},
    ".tiff": {},
    ".webp": {"quality": 92},
}
# Suffixes taken from folders and patterns; a file given by name is always tried.
_READABLE = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
_READABLE += (".tif", ".tiff", ".webp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to ``path`` that replaces it if the block succeeds.

    So a file appears either complete or not at all. Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, as several processes may write the same file at the same time. The suffix is
    # kept, as writers such as cv2.imwrite choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_images(inputs: Sequence[str], *, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Expands files, patterns and folders.

    Args:
        inputs: Names of files and folders, and patterns.
        recursive: Whether a folder stands for the images in its sub-folders as well.

    Returns:
        Paths of files without duplicates, and a sentence for each input without files.
    """
    paths, problems = {}, []
    for name in map(os.path.expanduser, inputs):
        if os.path.isfile(name):
            found = [name]
        else:
            inside = os.path.join(glob.escape(name), "**" if recursive else "", "*")
            pattern = inside if os.path.isdir(name) else name
            found = sorted(
                path
                for path in glob.glob(pattern, recursive=True)
                if path.lower().endswith(_READABLE) and os.path.isfile(path)
            )
        if not found:
            problem = "holds no image" if os.path.isdir(name) else "does not exist"
            if glob.has_magic(name):
                problem = "matches no image"
            problems.append(f"'{name}' {problem}")
        paths.update((os.path.realpath(path), path) for path in found)
    return list(paths.values()), problems


def write_image(path: str | os.PathLike, image: np.ndarray | Image.Image) -> None:
    """Writes a picture in the format of the suffix; creates missing folders.

    Args:
        path: The file, ending in .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp.
        image: (H, W, 3) uint8, BGR, or a Pillow RGB image.

    Raises:
        OSError: The file cannot be written; the message names it.
        ValueError: The suffix is not one of those above.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"cannot write '{path}': the suffix must be one of {', '.join(_WRITABLE)}")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **_WRITABLE[path.suffix.lower()])
    except OSError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def output_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Returns unique names, relative to an output folder, for pictures made from ``paths``.

    A file keeps its name. Files with the same name keep their folders: ``a/1.jpg`` and ``b/1.jpg``
    stay ``a/1.jpg`` and ``b/1.jpg``. Formats that :func:`write_image` does not write get ``.png``
    appended.

    Args:
        paths: Files without duplicates.

    Returns:
        One relative path for each of ``paths``.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names = [
        path.name if path.suffix.lower() in _WRITABLE else f"{path.name}.png" for path in absolute
    ]
    # In some file systems, "A.png" and "a.png" are the same file.
    counts = Counter(name.casefold() for name in names)
    shared = [path.parent for path, n in zip(absolute, names) if counts[n.casefold()] > 1]
    root = os.path.commonpath(shared) if shared else ""
    return [
        name if counts[name.casefold()] == 1 else (path.parent.relative_to(root) / name).as_posix()
        for path, name in zip(absolute, names)
    ]
