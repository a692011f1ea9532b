"""A detector of bright spots, whose detections are known at every scale and in a mirror."""

from pathlib import Path

import cv2
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

SCORES = (0.9, 0.8, 0.7)


class Spots(nn.Module):
    """Finds the bright pixels of each of the three channels: a box of class 0, 1 or 2.

    It sees the same at every scale and in a mirror, and remembers the images that it was given.
    """

    input_format = "BGR"
    test_nms_thresh = 0.6

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype
        self.batches = []
        self.eval()

    def forward(self, batched_inputs):
        self.batches.append([x["image"] for x in batched_inputs])
        return [{"instances": self.detect(x["image"])} for x in batched_inputs]

    def detect(self, image):
        boxes, scores, classes = [], [], []
        for k, channel in enumerate(image):
            rows, columns = (channel > 127).nonzero().unbind(dim=1)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append(SCORES[k])
                classes.append(k)
        instances = Instances(tuple(image.shape[1:]))
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).to(self.dtype))
        instances.scores = torch.tensor(scores, dtype=self.dtype)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return instances

    @property
    def shapes(self):
        return [[tuple(image.shape[1:]) for image in batch] for batch in self.batches]


def picture(*boxes, size=(40, 60)):
    """(3, H, W) uint8: box i is bright in channel i."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in zip(image, boxes):
        channel[y1:y2, x1:x2] = 255
    return image


def write_picture(path: Path, image) -> str:
    cv2.imwrite(str(path), image.permute(1, 2, 0).numpy())
    return str(path)


def detect(model, image, **extra):
    (output,) = model([{"image": image, **extra}])
    instances = output["instances"]
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes
