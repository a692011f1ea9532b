"""Turns any config of configs/ablations/ into a small experiment on generated scenes.

`python -m ablations` merges this file into a row's config (ablations/configs.py): a node with a
`_target_` replaces the row's node, any other is merged key by key. So what the row is about stays
as it is (matcher, box coder, anchors, losses, switches of the head), and this file adds the rest.
The strides are those of the rows. A run is meant to take two minutes on one thread.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec

from atss_d2.data import build_test_loader
from atss_d2.engine import BackboneLRFactor, build_train_loader
from atss_d2.modeling import TorchvisionBackbone, build_fpn_with_p6p7

from .data.constants import constants as _constants
from .optim import AdamW as optimizer
from .schedule import lr_multiplier_cosine as lr_multiplier

_channels = 64

model = dict(
    backbone=L(build_fpn_with_p6p7)(
        bottom_up=L(TorchvisionBackbone)(name="mobilenet_v2", norm="FrozenBN", freeze_at=4),
        in_features=["res3", "res4", "res5"],
        out_channels=_channels,
    ),
    head=dict(input_shape=[ShapeSpec(channels=_channels)] * 5, conv_dims=[_channels] * 2),
    num_classes=1,
    # torchvision's weights are for RGB images.
    input_format="RGB",
    pixel_mean=_constants.imagenet_rgb256_mean,
    pixel_std=_constants.imagenet_rgb256_std,
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="shapes_wide_train"),
        mapper=L(DatasetMapper)(
            is_train=True,
            # Sides of 240 to 290 pixels, objects of 16 to 260.
            augmentations=[L(T.RandomFlip)(horizontal=True)],
            image_format="${model.input_format}",
        ),
        total_batch_size=2,
        num_workers=0,  # the runs of a study share the cores
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="shapes_wide_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[],
            image_format="${model.input_format}",
        ),
        num_workers=0,
    ),
    evaluator=L(COCOEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
    ),
)

optimizer.lr = 1e-3
optimizer.params.lr_factor_func = L(BackboneLRFactor)(factor=0.3)

train = dict(
    init_checkpoint="atss_d2://pretrained/mobilenet_v2.pth",
    max_iter=400,
    eval_period=0,  # only at the end
    log_period=20,
    channels_last=True,
    clip_gradients=dict(enabled=True, max_norm=5.0),
    ema=dict(enabled=True, decay=0.99),
    checkpointer=dict(period=100, max_to_keep=1),
)
