"""Our augmentations: sizes by hand, boxes follow, errors."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from atss_d2.data.augmentation import RandomSquareCrop, ResizeByFactor


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((400, 300), 1.5, (600, 450)),
        ((5, 7), 0.5, (2, 4)),  # round(2.5) and round(3.5), to even
        ((1, 1), 0.1, (1, 1)),
        ((8, 8), 1, (8, 8)),
    ],
)
def test_sides_are_multiplied(size, factor, expected):
    image = np.zeros((*size, 3), np.uint8)
    aug_input = T.AugInput(image, boxes=np.array([[1.0, 1.0, 3.0, 2.0]]))
    ResizeByFactor(factor)(aug_input)
    assert aug_input.image.shape == (*expected, 3)
    scale = np.array([expected[1] / size[1], expected[0] / size[0]] * 2)
    np.testing.assert_allclose(aug_input.boxes, np.array([[1.0, 1.0, 3.0, 2.0]]) * scale)


def test_crops_are_squares_of_all_sizes_in_the_range():
    image = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60, 1)
    crop = RandomSquareCrop(10, 12)
    sizes = set()
    for _ in range(60):
        transform = crop.get_transform(image)
        out = transform.apply_image(image)
        x, y = transform.x0, transform.y0
        np.testing.assert_array_equal(out, image[y : y + out.shape[0], x : x + out.shape[1]])
        sizes.add(out.shape[:2])
    assert sizes == {(10, 10), (11, 11), (12, 12)}


def test_crop_is_no_larger_than_the_image():
    image = np.zeros((8, 30, 3), np.uint8)
    assert RandomSquareCrop(20, 25).get_transform(image).apply_image(image).shape == (8, 8, 3)
    assert RandomSquareCrop(4, 25).get_crop_size((6, 30))[0] in (4, 5, 6)


@pytest.mark.parametrize(("smallest", "largest"), [(0, 5), (6, 5)])
def test_sizes_out_of_range_are_named(smallest, largest):
    with pytest.raises(ValueError, match="factor must be > 0, got 0"):
        ResizeByFactor(0)
    with pytest.raises(ValueError, match="need 1 <= min_size <= max_size"):
        RandomSquareCrop(smallest, largest)
