"""Reads image files into arrays, for training, evaluation and prediction."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data.detection_utils import read_image as detectron2_read_image
from detectron2.utils.file_io import PathManager

from ..plain.images import open_rgb

__all__ = ["read_image"]


def read_image(file_name: str | os.PathLike[str], format: str = "BGR") -> np.ndarray:
    """Reads an image like Detectron2's ``read_image``, but keeps the contrast of deep gray images.

    Detectron2 turns every value above 255 white; here gray images of more than 8 bits are scaled by
    :func:`~atss_d2.plain.images.to_8_bit`. Other images are bit-identical to Detectron2's.

    Args:
        file_name: A path or anything else that Detectron2's ``PathManager`` opens.
        format: "BGR", "RGB", or another format of Detectron2's function, which then reads the file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file is damaged or not an image.
    """
    if format not in ("BGR", "RGB"):
        return detectron2_read_image(os.fspath(file_name), format)
    with PathManager.open(os.fspath(file_name), "rb") as file:
        pixels = np.asarray(open_rgb(file))
    return pixels[:, :, ::-1] if format == "BGR" else pixels
