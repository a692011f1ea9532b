"""Images, boxes, anchors and predictions for the benchmarks, the same in every run.

Shapes: N images, L levels of size Hi x Wi, Ri = Hi x Wi anchors of level i, M boxes of an image,
K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
ATSS_SCALE = 8.0  # side of the square anchors, in strides
POINT_SCALE = 1.0  # side of the anchors that represent FCOS's points
IMAGE_SIZE = (800, 1344)


def level_sizes(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns (Hi, Wi) of the feature maps of an image of (height, width)."""
    return [tuple(math.ceil(side / stride) for side in image_size) for stride in STRIDES]


def num_anchors(image_size: tuple[int, int]) -> int:
    """Returns R for one anchor per location."""
    return sum(height * width for height, width in level_sizes(image_size))


def feature_maps(
    image_size: tuple[int, int], num_images: int = 1, device: torch.device | None = None
) -> list[Tensor]:
    """Returns L maps of one channel (N, 1, Hi, Wi), which is all an anchor generator reads."""
    return [torch.zeros(num_images, 1, *size, device=device) for size in level_sizes(image_size)]


def anchors(image_size: tuple[int, int], scale: float = ATSS_SCALE) -> list[Boxes]:
    """Returns L levels of square anchors of side ``scale`` strides, one per location."""
    generator = DefaultAnchorGenerator(
        sizes=[[scale * stride] for stride in STRIDES],
        aspect_ratios=[1.0],
        strides=list(STRIDES),
        offset=0.5,
    )
    return generator(feature_maps(image_size))


def random_boxes(num: int, image_size: tuple[int, int], seed: int = 0) -> Tensor:
    """Returns (M, 4) boxes within an image: sqrt(area) from 8 to 400 px, sides up to 2:1.

    Sizes are log-uniform, because small objects are more frequent in photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(num, 4, generator=generator)
    largest = max(min(400.0, min(image_size) / 2), 9.0)
    sides = 8 * (largest / 8) ** u[:, 0]
    shape = 2 ** (u[:, 1] - 0.5)
    width_height = torch.stack((sides * shape, sides / shape), dim=1)  # (M, 2)
    extent = torch.tensor(image_size[::-1])
    lower = u[:, 2:] * (extent - width_height).clamp(min=0)
    return torch.cat((lower, torch.minimum(lower + width_height, extent)), dim=1)


def random_classes(num: int, num_classes: int, seed: int = 0) -> Tensor:
    """Returns (M,) random classes."""
    return torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed))


def ground_truth(
    num_images: int, num_boxes: int, image_size: tuple[int, int], num_classes: int
) -> list[Instances]:
    """Returns N images with M boxes each."""
    return [
        Instances(
            image_size,
            gt_boxes=Boxes(random_boxes(num_boxes, image_size, seed)),
            gt_classes=random_classes(num_boxes, num_classes, seed),
        )
        for seed in range(num_images)
    ]


def random_images(num_images: int, image_size: tuple[int, int]) -> list[Tensor]:
    """Returns N images (3, H, W) of uint8 noise."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *image_size), generator=generator, dtype=torch.uint8)
        for _ in range(num_images)
    ]


@dataclass(frozen=True)
class Predictions:
    """What a head may predict for one image, independent of a detector's encoding.

    Args:
        anchors: L levels, each (Ri, 4): the points, as squares with the stride as side.
        logits: L levels, each (Ri, K).
        centerness: L levels, each (Ri,) logits.
        boxes: L levels, each (Ri, 4); the center of the anchor lies inside its box.
    """

    anchors: list[Tensor]
    logits: list[Tensor]
    centerness: list[Tensor]
    boxes: list[Tensor]

    def to(self, device: torch.device) -> Predictions:
        """Moves all tensors to a device."""
        parts = (self.anchors, self.logits, self.centerness, self.boxes)
        return Predictions(*([level.to(device) for level in part] for part in parts))


def predictions(
    image_size: tuple[int, int], num_classes: int, num_objects: int = 30, seed: int = 0
) -> Predictions:
    """Returns predictions like those of a trained detector on an image with some objects.

    Background logits are normal with mean -7.5 and deviation 1.3, so that of 1.8 million about 400
    exceed a score of 0.05. Around the center of an object the logit of its class rises to 2, that
    of a similar class to 0, less on levels that do not suit its size. So at 800 x 1344 about 3,000
    exceed it, most of them around objects, where they predict nearly the same box.
    """
    generator = torch.Generator().manual_seed(seed)
    objects = random_boxes(num_objects, image_size, seed)
    classes = random_classes(num_objects, num_classes, seed)
    centers = (objects[:, :2] + objects[:, 2:]) / 2
    sides = objects[:, 2:] - objects[:, :2]
    result = Predictions([], [], [], [])
    for level_anchors, stride in zip(anchors(image_size, POINT_SCALE), STRIDES):
        squares = level_anchors.tensor
        num = len(squares)
        points = (squares[:, :2] + squares[:, 2:]) / 2
        # 0 in the center of an object, 1 at its border
        offsets = ((points[:, None] - centers).abs() / (sides / 2)).amax(dim=2)  # (Ri, M)
        octaves = (sides.prod(dim=1).sqrt() / (ATSS_SCALE * stride)).log2()  # (M,)
        rise = 2 - 9 * offsets.square() - 1.5 * octaves.square()  # (Ri, M)
        best, owner = rise.max(dim=1)
        owner_offsets = offsets.gather(1, owner[:, None])[:, 0]

        logits = -7.5 + 1.3 * torch.randn(num, num_classes, generator=generator)
        peaks = best + 0.5 * torch.randn(num, generator=generator)
        similar = (classes + 1) % num_classes
        for of_object, lower in ((classes, 0.0), (similar, 2.0)):
            columns = of_object[owner][:, None]
            raised = torch.maximum(logits.gather(1, columns), (peaks - lower)[:, None])
            logits.scatter_(1, columns, raised)

        is_inside = owner_offsets < 0.9
        noise = 1 + 0.03 * torch.randn(num, 2, generator=generator)
        half = sides[owner] / 2 * noise
        near = torch.cat((centers[owner] - half, centers[owner] + half), dim=1)
        far = torch.cat((points - 2 * stride, points + 2 * stride), dim=1)
        result.anchors.append(squares)
        result.logits.append(logits)
        result.centerness.append(2 - 4 * owner_offsets.clamp(max=2))
        boxes = torch.where(is_inside[:, None], near, far).clamp(min=0)
        result.boxes.append(torch.minimum(boxes, torch.tensor(image_size[::-1]).repeat(2)))
    return result


def as_maps(levels: list[Tensor], image_size: tuple[int, int], num_images: int = 1) -> list[Tensor]:
    """Converts L levels (Ri, C) to maps of a convolution (N, C, Hi, Wi), N equal images."""
    return [
        level.view(height, width, -1).permute(2, 0, 1).repeat(num_images, 1, 1, 1)
        for level, (height, width) in zip(levels, level_sizes(image_size))
    ]
