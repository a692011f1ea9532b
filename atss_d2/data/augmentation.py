"""Augmentations that Detectron2 does not have."""

import numpy as np
from detectron2.data import transforms as T

__all__ = ["RandomSquareCrop", "ResizeByFactor"]


class ResizeByFactor(T.Augmentation):
    """Resizes every image by the same factor, regardless of its size.

    Use it for images of one known ground resolution, such as aerial photographs, where Detectron2's
    ``ResizeShortestEdge`` would make the size of objects depend on the size of the image.
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


class RandomSquareCrop(T.RandomCrop):
    """Crops a square of random size; resizing the crops to one size then varies object scale.

    Detectron2's ``RandomCrop("absolute_range", ...)`` draws height and width independently, which
    distorts objects when the crop is resized to a square.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        """
        Args:
            min_size: Minimum side of the square, in pixels.
            max_size: Maximum side, in pixels; limited by the size of the image.

        Raises:
            ValueError: The sizes are not ``1 <= min_size <= max_size``.
        """
        if not 1 <= min_size <= max_size:
            raise ValueError(f"need 1 <= min_size <= max_size, got {min_size} and {max_size}")
        super().__init__("absolute_range", (min_size, max_size))
        self.min_size, self.max_size = min_size, max_size

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draws (height, width), which are equal, for an image of (height, width)."""
        smallest, largest = (min(size, *image_size) for size in (self.min_size, self.max_size))
        side = np.random.randint(smallest, largest + 1)  # noqa: NPY002  (as Detectron2 draws)
        return side, side
