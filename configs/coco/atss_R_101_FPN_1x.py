"""ATSS, ResNet-101-FPN, 90k iterations.

    python train_net.py --config-file configs/coco/atss_R_101_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 41.5 (mmdetection).
"""

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
