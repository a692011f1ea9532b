"""The published scene of the quality heads, with the maps of one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from atss_d2.modeling.box_coding import TwoSidedBox2BoxTransform
from atss_d2.modeling.nouns import Predictions, Scene
from atss_d2.modeling.predictions import decode_predictions, predictions_from_maps
from atss_d2.modeling.scene import build_scene
from tests.quality_scene import anchors, of_images, tensor
from tests.reference import published_quality

numbers = published_quality()
LEVELS = range(5)
SIZES = [(height, width) for width, height in numbers["sizes_wh"].tolist()]
CODER = TwoSidedBox2BoxTransform((10.0, 10.0, 5.0, 5.0))


def predictions() -> Predictions:
    """Of the head of PAA."""
    maps = [[tensor(f"paa.{name}_{level}") for level in LEVELS] for name in ("cls", "reg", "iou")]
    return predictions_from_maps(maps, num_anchors=[1] * 5, num_classes=5, num_box_values=4)


def scene() -> Scene:
    """What a rule sees."""
    return build_scene(anchors(), of_images("gt_boxes"))._replace(
        classes=torch.cat(of_images("gt_classes")),
        predictions=decode_predictions(predictions(), anchors(), CODER),
    )


def of_the_batch(assigned: list[Tensor]) -> Tensor:
    """(N, R) indices into the boxes of the batch, of those into the boxes of an image."""
    first, second = assigned
    return torch.stack(
        (first, torch.where(second >= 0, second + len(tensor("gt_boxes_0")), second))
    )
