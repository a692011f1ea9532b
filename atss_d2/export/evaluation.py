"""Wraps an exported file as a model, for Detectron2's evaluation."""

from __future__ import annotations

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..modeling.nms import batched_nms
from .runtime import ExportedDetector


class ExportedModel(nn.Module):
    """An exported file with the inputs and outputs of a Detectron2 detector.

    For a file without NMS, NMS is applied here, so that its detections can be evaluated.
    """

    def __init__(self, exported: ExportedDetector) -> None:
        """
        Args:
            exported: As returned by :func:`load_exported`.
        """
        super().__init__()
        self.exported = exported

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """Returns the detections of each image, in pixels of its ``height`` and ``width``."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, inputs: dict) -> Instances:
        image: Tensor = inputs["image"]
        height, width = image.shape[-2:]
        boxes, scores, classes, num_detections = (
            torch.from_numpy(x) for x in self.exported(image[None])
        )
        found = slice(int(num_detections[0]))
        boxes, scores, classes = boxes[0, found], scores[0, found], classes[0, found]
        metadata = self.exported.metadata
        if not metadata.with_nms:
            keep = batched_nms(boxes, scores, classes, metadata.iou_thresh)
            keep = keep[: metadata.max_detections]
            boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        instances = Instances(
            (height, width), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )
        return detector_postprocess(
            instances, inputs.get("height", height), inputs.get("width", width)
        )
