"""ATSS, ResNet-101-FPN with deformable convolutions (v2), 90k iterations.

    python train_net.py --config-file configs/coco/atss_dcnv2_R_101_FPN_1x.py --num-gpus 8

No AP is quoted for this model with this schedule.
"""

from .atss_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, True, True, True]
model.head.deform_last_conv = True
