"""Where annotated pictures are written, and how."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# What Pillow both reads and writes without loss of colours. The value holds options of `save`:
# no chroma subsampling, which would smear lines that are one pixel thin.
_WRITABLE = {
    ".bmp": {},
    ".jpeg": {"quality": 92, "subsampling": 0},
    ".jpg": {"quality": 92, "subsampling": 0},
    ".png": {},
    ".tif": {},
    ".tiff": {},
    ".webp": {"quality": 92},
}


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a picture; the suffix says the format, folders are made.

    Args:
        path: Ends in .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp.
        image: (H, W, 3) uint8, BGR.

    Raises:
        OSError: The file cannot be written; the message names it.
        ValueError: The suffix is none of those above.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise ValueError(f"cannot write '{path}': the suffix must be one of {', '.join(_WRITABLE)}")
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(path, **_WRITABLE[path.suffix.lower()])
    except OSError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def output_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Names below an output folder for pictures made of the files ``paths``, all different.

    A file keeps its name. Files of the same name go to sub-folders named as their own:
    ``a/1.jpg`` and ``b/1.jpg`` become ``a/1.jpg`` and ``b/1.jpg``. Formats that
    :func:`write_image` does not write get ``.png`` appended.

    Args:
        paths: Different files.

    Returns:
        One relative path for each of ``paths``.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names = [
        path.name if path.suffix.lower() in _WRITABLE else f"{path.name}.png" for path in absolute
    ]
    # Some file systems take "A.png" and "a.png" for the same file.
    counts = Counter(name.casefold() for name in names)
    shared = [path.parent for path, n in zip(absolute, names) if counts[n.casefold()] > 1]
    root = os.path.commonpath(shared) if shared else ""
    return [
        name if counts[name.casefold()] == 1 else (path.parent.relative_to(root) / name).as_posix()
        for path, name in zip(absolute, names)
    ]
