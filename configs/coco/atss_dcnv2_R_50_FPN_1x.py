"""ATSS, ResNet-50-FPN with deformable convolutions (v2), 90k iterations.

    python train_net.py --config-file configs/coco/atss_dcnv2_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 43.2 (authors' release).
"""

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, True, True, True]
model.head.deform_last_conv = True
