"""ATSS, ResNeXt-101-32x8d-FPN, 180k iterations with multi-scale training.

    python train_net.py --config-file configs/coco/atss_X_101_32x8d_FPN_2x.py --num-gpus 8

Quoted COCO box AP: val2017 44.8 (authors' release), test-dev 45.1 (paper, Table 8).
"""

from ..common.data.constants import constants
from .atss_R_101_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.update(num_groups=32, width_per_group=8, stride_in_1x1=False)
model.pixel_std = constants.imagenet_bgr256_std
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
