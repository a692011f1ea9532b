"""Detectron2's own dense detectors on the toy backbone, and batches for them."""

import warnings

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from atss_d2.modeling.matchers import BACKGROUND, DenseMatcher
from atss_d2.warning_filters import filter_third_party_warnings
from tests.toy import CHANNELS, ToyBackbone

with warnings.catch_warnings():
    filter_third_party_warnings()
    from detectron2 import model_zoo

NUM_CLASSES = 3
STRIDES = (8, 16)
PIXELS = {"pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [57.375, 57.12, 58.395]}
BOXES = ([6.0, 5, 40, 44], [30, 10, 90, 60], [8, 8, 24, 24])


def zoo_config(name):
    """The LazyConfig of Detectron2's model zoo for "retinanet" or "fcos"."""
    return model_zoo.get_config(f"COCO-Detection/{name}_R_50_FPN_1x.py")


def backbone():
    # No norm that would cancel a bias: its gradient would be a rounding error.
    return ToyBackbone(norm="FrozenBN")


def anchor_generator(num_anchors=9, offset=0.5):
    """A = 1: squares of 4 strides; A = 9: three sizes and ratios."""
    octaves = [1.0] if num_anchors == 1 else [2 ** (i / 3) for i in range(3)]
    return DefaultAnchorGenerator(
        sizes=[[4 * stride * octave for octave in octaves] for stride in STRIDES],
        aspect_ratios=[1.0] if num_anchors == 1 else [0.5, 1.0, 2.0],
        strides=list(STRIDES),
        offset=offset,
    )


def randomized(model):
    """Weights under which scores are of all sizes and boxes are not their anchors."""
    for name, parameter in model.head.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
        elif name.startswith(("bbox_pred", "ctrness")):
            nn.init.uniform_(parameter, 0.2, 1.0)
    nn.init.normal_(model.head.cls_score.bias, mean=-2.0, std=0.5)
    return model


def retinanet(num_anchors=9, norm="", model_class=RetinaNet, **options):
    torch.manual_seed(0)
    parts = {
        "backbone": backbone(),
        "head": RetinaNetHead(
            input_shape=[ShapeSpec(channels=CHANNELS)] * len(STRIDES),
            num_classes=NUM_CLASSES,
            num_anchors=num_anchors,
            conv_dims=[CHANNELS, CHANNELS],
            norm=norm,
        ),
        "head_in_features": ["p3", "p4"],
        "anchor_generator": anchor_generator(num_anchors),
        "box2box_transform": Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        "num_classes": NUM_CLASSES,
        **PIXELS,
    }
    return randomized(model_class(**{**parts, **options}))


def fcos(norm="GN", model_class=FCOS, **options):
    torch.manual_seed(0)
    parts = {
        "backbone": backbone(),
        "head": FCOSHead(
            input_shape=[ShapeSpec(channels=CHANNELS)] * len(STRIDES),
            num_classes=NUM_CLASSES,
            conv_dims=[CHANNELS, CHANNELS],
            norm=norm,
        ),
        "num_classes": NUM_CLASSES,
        **PIXELS,
    }
    return randomized(model_class(**{**parts, **options}))


def instances(boxes=(), classes=None, size=(64, 96), **fields):
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
    result.gt_classes = torch.tensor(classes or [i % NUM_CLASSES for i in range(len(boxes))]).long()
    for name, value in fields.items():
        result.set(name, torch.tensor(value))
    return result


def image(boxes=(), seed=0, size=(64, 96), **fields):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "instances": instances(boxes, size=size, **fields)}


class Recorder(DenseMatcher):
    """Says the same of every anchor, and keeps what it was given."""

    def __init__(self, answer=BACKGROUND):
        super().__init__()
        self.answer = answer
        self.scenes = []

    def match(self, scene):
        self.scenes.append(scene)
        num_anchors = sum(len(a) for a in scene.anchors)
        return torch.full((scene.num_images, num_anchors), self.answer)


def batch():
    """Two images with boxes and one without, of two sizes."""
    return [image(BOXES, 0), image(BOXES[:1], 1, size=(48, 80)), image((), 2)]


def random_boxes(num, generator, size=(64, 96), least=4):
    """Boxes in an image of (height, width)."""
    height, width = size
    lower = torch.rand(num, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    sides = least + torch.rand(num, 2, generator=generator) * torch.tensor([width, height]) * 0.5
    return torch.cat((lower, lower + sides), dim=1)


def losses_of(model, images=None):
    """Losses of a training step; outside of a trainer."""
    model.train()
    with EventStorage():
        return model(batch() if images is None else images)


def gradients_of(model, images=None):
    """Gradient of the summed losses for every parameter, by name."""
    model.zero_grad()
    sum(losses_of(model, images).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def detections_of(model, images=None):
    model.eval()
    with torch.no_grad():
        return [x["instances"] for x in model(batch() if images is None else images)]


def anchors_of(model, size=(64, 96)):
    """The L levels of anchors for an image of (height, width)."""
    maps = [torch.zeros(1, 1, size[0] // s, size[1] // s) for s in model.anchor_generator.strides]
    return model.anchor_generator(maps)
