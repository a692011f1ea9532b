"""ATSS with a ResNet-50-FPN: the paper's model, which every recipe changes in a few lines."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform

from atss_d2.modeling import (
    ATSS,
    ATSSHead,
    ATSSMatcher,
    build_fpn_with_p6p7,
    make_resnet_stages,
)

from ..data.constants import constants

model = L(ATSS)(
    backbone=L(build_fpn_with_p6p7)(  # P6 from P5, not from C5 as in Detectron2's RetinaNet
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(make_resnet_stages)(depth=50),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=256,
    ),
    head=L(ATSSHead)(
        input_shape=[ShapeSpec(channels=256)] * 5,
        num_classes="${..num_classes}",
    ),
    # One square anchor per location, of side 8 x stride.
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[64], [128], [256], [512], [1024]],
        aspect_ratios=[1.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.5,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=(10.0, 10.0, 5.0, 5.0)),  # of dx, dy, dw, dh
    matcher=L(ATSSMatcher)(topk=9),
    num_classes=80,
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    pixel_mean=constants.imagenet_bgr256_mean,
    pixel_std=constants.msra_std,
    input_format="BGR",
)
