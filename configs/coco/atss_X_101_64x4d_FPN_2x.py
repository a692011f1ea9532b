"""ATSS, ResNeXt-101-64x4d-FPN, 180k iterations with multi-scale training.

    python train_net.py --config-file configs/coco/atss_X_101_64x4d_FPN_2x.py --num-gpus 8

Quoted COCO box AP: val2017 45.5 (authors' release), test-dev 45.6 (paper, Table 8).
"""

from .atss_R_101_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.update(num_groups=64, width_per_group=4, stride_in_1x1=False)
train.init_checkpoint = "catalog://ImageNetPretrained/FAIR/X-101-64x4d"
