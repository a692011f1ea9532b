"""Augmentations that Detectron2 does not have."""

import numpy as np
from detectron2.data import transforms as T

__all__ = ["ResizeByFactor"]


class ResizeByFactor(T.Augmentation):
    """Enlarges or shrinks every image by the same factor, whatever its size.

    For images of one known ground resolution, such as aerial photographs, where Detectron2's
    ``ResizeShortestEdge`` would change the size of objects with the size of the picture.
    """

    def __init__(self, factor: float) -> None:
        """
        Args:
            factor: Sides of the result as a multiple of the sides of the image.

        Raises:
            ValueError: ``factor`` is not positive.
        """
        super().__init__()
        if factor <= 0:
            raise ValueError(f"factor must be > 0, got {factor}")
        self.factor = factor

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        new_height, new_width = (max(1, round(side * self.factor)) for side in (height, width))
        return T.ResizeTransform(height, width, new_height, new_width)
