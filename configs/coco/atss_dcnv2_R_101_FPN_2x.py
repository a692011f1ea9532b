"""ATSS, ResNet-101-FPN with deformable convolutions (v2), 180k iterations, multi-scale training.

    python train_net.py --config-file configs/coco/atss_dcnv2_R_101_FPN_2x.py --num-gpus 8

Quoted COCO box AP: val2017 46.1 (authors' release), test-dev 46.3 (paper, Table 8).
"""

from .atss_R_101_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, True, True, True]
model.head.deform_last_conv = True
