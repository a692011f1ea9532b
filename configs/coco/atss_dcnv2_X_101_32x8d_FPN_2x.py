"""ATSS, ResNeXt-101-32x8d-FPN with deformable convolutions (v2), 180k iterations, multi-scale.

    python train_net.py --config-file configs/coco/atss_dcnv2_X_101_32x8d_FPN_2x.py --num-gpus 8

Quoted COCO box AP: val2017 47.7 (authors' release), test-dev 47.7 (paper, Table 8).
"""

from .atss_X_101_32x8d_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, False, True, True]
model.head.deform_last_conv = True
