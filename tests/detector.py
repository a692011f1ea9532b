"""A toy detector of random weights, and inputs for it."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import nn

from atss_d2.modeling import ATSS, ATSSHead, ATSSMatcher

CHANNELS = 64  # two of every group of GN: a group of one value has no variance


class ToyBackbone(Backbone):
    """Two convolutions: one of stride 8, one of stride 2 for every further level."""

    def __init__(self, num_levels=2):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, kernel_size=8, stride=8)
        if num_levels > 1:
            self.down = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, stride=2, padding=1)
        self._out_features = [f"p{3 + i}" for i in range(num_levels)]
        self._out_feature_strides = {name: 8 * 2**i for i, name in enumerate(self._out_features)}
        self._out_feature_channels = dict.fromkeys(self._out_features, CHANNELS)

    @property
    def size_divisibility(self):
        return max(self._out_feature_strides.values())

    def forward(self, x):
        features = [self.stem(x)]
        while len(features) < len(self._out_features):
            features.append(self.down(features[-1].relu()))
        return dict(zip(self._out_features, features, strict=True))


def toy_head(num_levels=2, num_anchors=1, num_classes=3, **options):
    """A head of one convolution a tower."""
    return ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * num_levels,
        num_classes=num_classes,
        num_anchors=num_anchors,
        conv_dims=[CHANNELS],
        **options,
    )


def build(num_levels=2, num_anchors=1, num_classes=3, anchor_scale=4, seed=0, **options):
    """A toy ATSS with weights that give scores of all sizes."""
    torch.manual_seed(seed)
    strides = [8 * 2**i for i in range(num_levels)]
    num_ratios = 1 if num_anchors == 1 else 3
    octaves = [2 ** (i / 3) for i in range(num_anchors // num_ratios)]
    parts = {
        "backbone": ToyBackbone(num_levels),
        "head": toy_head(num_levels, num_anchors, num_classes),
        "anchor_generator": DefaultAnchorGenerator(
            sizes=[[anchor_scale * s * octave for octave in octaves] for s in strides],
            aspect_ratios=[1.0] if num_ratios == 1 else [0.5, 1.0, 2.0],
            strides=strides,
            offset=0.5,
        ),
        "box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        "matcher": ATSSMatcher(num_anchors=num_anchors),
        "num_classes": num_classes,
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [57.375, 57.12, 58.395],
        **options,
    }
    model = ATSS(**parts)
    for name in ("cls_score", "bbox_pred", "ctrness"):
        predictor = getattr(model.head, name, None)
        if predictor is not None:
            nn.init.normal_(predictor.weight, std=0.15)
    return model


def image(boxes=(), classes=None, size=(64, 96), seed=0, **extra):
    """One input of the model."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    if classes is None:
        classes = [i % 3 for i in range(len(boxes))]
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "instances": instances, **extra}


BOXES = [[3.0, 5, 40, 47], [30, 8, 90, 60], [50, 10, 71, 33], [0, 0, 96, 64]]


def random_boxes(num, dtype=torch.float32):
    """XYXY boxes (num, 4) with sides of 1 to 51 px."""
    corners = 100 * torch.rand(num, 2, dtype=dtype)
    return torch.cat((corners, corners + 1 + 50 * torch.rand(num, 2, dtype=dtype)), dim=1)
