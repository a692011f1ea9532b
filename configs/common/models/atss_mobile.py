"""A small ATSS for CPUs and phones: MobileNetV2, 96-channel FPN on strides 8 to 64."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from atss_d2.modeling import TorchvisionBackbone

from ..data.constants import constants
from .atss import model

model.backbone = L(FPN)(
    bottom_up=L(TorchvisionBackbone)(name="mobilenet_v2", norm="FrozenBN", freeze_at=2),
    in_features=["res3", "res4", "res5"],
    out_channels=96,
    top_block=L(LastLevelMaxPool)(),  # P6
)
model.head.update(input_shape=[ShapeSpec(channels=96)] * 4, conv_dims=[96, 96])
model.anchor_generator.update(sizes=[[64], [128], [256], [512]], strides=[8, 16, 32, 64])
model.head_in_features = ["p3", "p4", "p5", "p6"]
# torchvision's weights are for RGB images.
model.input_format = "RGB"
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
