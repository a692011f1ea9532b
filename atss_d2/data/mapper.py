"""A dataset mapper for training on crops."""

from typing import Any

import numpy as np
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode

__all__ = ["MinVisibleDatasetMapper"]


class MinVisibleDatasetMapper(DatasetMapper):
    """Detectron2's `DatasetMapper` that drops boxes of which a crop left too little.

    Detectron2 clips each box to the augmented image and keeps whatever remains, so a crop turns
    objects at its border into slivers that teach the detector wrong boxes.

    Args:
        is_train: as in `DatasetMapper`.
        min_visible: smallest kept fraction of a box's augmented area that lies inside the augmented
            image, in [0, 1]. At 0 it is exactly `DatasetMapper`.
        **kwargs: the other arguments of `DatasetMapper`.

    Raises:
        ValueError: ``min_visible`` is outside [0, 1].
    """

    @configurable
    def __init__(self, is_train: bool, *, min_visible: float = 0.0, **kwargs: Any) -> None:
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible must be in [0, 1], got {min_visible}")
        super().__init__(is_train, **kwargs)
        self.min_visible = min_visible

    def _transform_annotations(
        self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        if self.min_visible > 0:
            # Before the base class: its boxes are clipped, and the whole area is lost.
            dataset_dict["annotations"] = [
                annotation
                for annotation in dataset_dict["annotations"]
                if _visible_fraction(annotation, transforms, image_shape) >= self.min_visible
            ]
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def _visible_fraction(
    annotation: dict, transforms: TransformList, image_shape: tuple[int, int]
) -> float:
    """Fraction of a transformed box's area inside the image; 0 for a box without area."""
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x1, y1, x2, y2 = transforms.apply_box(np.array([box], np.float64))[0]
    height, width = image_shape
    visible = max(min(x2, width) - max(x1, 0), 0) * max(min(y2, height) - max(y1, 0), 0)
    whole = (x2 - x1) * (y2 - y1)
    return visible / whole if whole > 0 else 0.0
