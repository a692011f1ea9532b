"""ResizeByFactor: sizes by hand, boxes follow, errors."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from atss_d2.data.augmentation import ResizeByFactor


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


def test_factor_must_be_positive():
    with pytest.raises(ValueError, match="factor must be > 0, got 0"):
        ResizeByFactor(0)
