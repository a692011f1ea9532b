"""Turns an R-CNN of configs/rcnn/ into the small experiment of ablation_shapes.py.

configs/demo/faster_rcnn_atss_rpn_shapes_wide.py shows how.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from atss_d2.modeling import TorchvisionBackbone

from .ablation_shapes import dataloader, lr_multiplier, optimizer
from .ablation_shapes import model as _model
from .ablation_shapes import train as _train

_channels = 64
_fpn = L(FPN)(
    bottom_up=L(TorchvisionBackbone)(
        name="mobilenet_v2",
        norm="FrozenBN",
        freeze_at=4,
        out_features=["res2", "res3", "res4", "res5"],
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=_channels,
    top_block=L(LastLevelMaxPool)(),
)


def shrink(model, train):
    """Gives a model the small backbone and heads, and ``train`` the short schedule."""
    generator, heads = model.proposal_generator, model.roi_heads
    for name in ("input_format", "pixel_mean", "pixel_std"):
        model[name] = _model[name]
    if "p7" in generator.in_features:  # an ATSS detector is the first stage
        model.backbone = _model.backbone
        generator.head.update(_model.head)
    else:
        model.backbone = _fpn
        generator.head.in_channels = _channels
    # 300 in training: the images are small.
    generator.post_nms_topk = [300, generator.post_nms_topk[1]]
    heads.update(num_classes=1, batch_size_per_image=128)
    for head in heads.get("box_heads") or [heads.box_head]:
        shape = ShapeSpec(channels=_channels, height=7, width=7)
        head.update(input_shape=shape, fc_dims=[256, 256])
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.input_shape = ShapeSpec(channels=256)
    if "mask_head" in heads:
        shape = ShapeSpec(channels=_channels, height=14, width=14)
        heads.mask_head.update(input_shape=shape, conv_dims=[_channels] * 3)
    train.merge_with(_train)


def with_masks(loaders):
    """Makes the loaders give masks as well."""
    loaders.train.dataset.names = "shapes_wide_masks_train"
    loaders.test.dataset.names = "shapes_wide_masks_val"
    # Rings have holes, which polygons cannot have.
    loaders.train.mapper.update(use_instance_mask=True, instance_mask_format="bitmask")
