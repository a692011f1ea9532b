"""Reads image files as 8-bit RGB, in one way for training, evaluation, demo and exports."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

_EXIF_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bit depths of cameras, scanners and detectors that write 16-bit files.
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def open_rgb(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Reads an image as 8-bit RGB, and applies its EXIF orientation; see :func:`to_rgb`.

    Args:
        file: A path or an open file.

    Raises:
        OSError: The file does not exist, is damaged, or is not an image.
    """
    with Image.open(file) as image:
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
        except Exception:  # damaged EXIF data raises any type; the pixels are fine
            orientation = None
        rgb = to_rgb(image)
    transposition = _TRANSPOSITIONS.get(orientation)
    return rgb if transposition is None else rgb.transpose(transposition)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any of Pillow's modes to 8-bit RGB.

    Gray images of more than 8 bits are scaled by :func:`to_8_bit`, as Pillow would clip them to
    white. Transparency is dropped, as in Detectron2.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # converting directly to RGB gives the same, with a warning
    return image.convert("RGB")


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scales gray values of more than 8 bits to 0..255.

    Integers from 0 to 65535 are divided by the maximum of their bit depth: the smallest of 8, 10,
    12, 14 and 16 bits that fits the image's brightest pixel, since 12-bit images are also stored in
    16-bit files. Floating-point values from 0 to 1 are multiplied by 255. Values in any other range
    are scaled so that the lowest becomes 0 and the highest 255.

    Args:
        values: (H, W) of any number type. NaN and infinite values count as the lowest finite value.

    Returns:
        (H, W) uint8.
    """
    is_integer = np.issubdtype(values.dtype, np.integer)
    values = values.astype(np.float64)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        values[~is_finite] = values[is_finite].min() if is_finite.any() else 0.0
    low, high = values.min(), values.max()
    if is_integer and low >= 0 and high <= 65535:
        low, high = 0, min(2**bits - 1 for bits in _BIT_DEPTHS if high <= 2**bits - 1)
    elif not is_integer and low >= 0 and high <= 1:
        low, high = 0, 1
    scale = 255 / (high - low) if high > low else 0.0
    return ((values - low) * scale + 0.5).astype(np.uint8)
