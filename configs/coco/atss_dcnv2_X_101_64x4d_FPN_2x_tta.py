"""ATSS, ResNeXt-101-64x4d-FPN with deformable convolutions (v2), multi-scale testing.

    python train_net.py --config-file configs/coco/atss_dcnv2_X_101_64x4d_FPN_2x_tta.py --eval-only

Evaluates the checkpoint of atss_dcnv2_X_101_64x4d_FPN_2x that train.init_checkpoint names, without
and with 26 passes over every image.

Quoted COCO box AP: test-dev 50.7 with the 26 passes, 47.7 without (paper, Table 8).
"""

from ..common.tta import test_time_augmentation
from .atss_dcnv2_X_101_64x4d_FPN_2x import dataloader, lr_multiplier, model, optimizer, train
