"""Draws training images for TensorBoard: the boxes of an image above, detections below."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

__all__ = ["draw_training", "is_time_to_draw"]


def is_time_to_draw(period: int) -> bool:
    """Returns whether to draw in this iteration; true only on the main process."""
    return comm.is_main_process() and get_event_storage().iter % period == 0


@torch.no_grad()
def draw_training(
    model: DenseDetector,
    images: ImageList,
    features: Sequence[Tensor],
    predictions: Sequence[Sequence[Tensor]],
    gt_instances: Sequence[Instances],
) -> None:
    """Hands the first image of a batch to Detectron2's ``DenseDetector.visualize_training``.

    Args:
        model: Detects from ``predictions``; backbone and head do not run again.
        images: The batch as the backbone got it.
        features: L maps, each (N, C, Hi, Wi).
        predictions: Output of the head: lists of L maps.
        gt_instances: N images with ``gt_boxes``.
    """
    height, width = images.image_sizes[0]
    first = ImageList(images.tensor[:1], images.image_sizes[:1])
    (detections,) = model.forward_inference(
        first, [x[:1] for x in features], [[x[:1] for x in maps] for maps in predictions]
    )
    pixels = images.tensor[0, :, :height, :width] * model.pixel_std + model.pixel_mean
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    best = detections.scores.argsort(descending=True)
    inputs = [{"image": pixels.cpu(), "instances": gt_instances[0].to("cpu")}]
    model.visualize_training(inputs, [detections[best].to("cpu")])
