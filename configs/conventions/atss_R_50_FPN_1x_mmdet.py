r"""ATSS, ResNet-50-FPN, as mmdetection computes it: for its weights, or for training.

    python train_net.py --config-file configs/conventions/atss_R_50_FPN_1x_mmdet.py --eval-only \
        train.init_checkpoint=mmdet://atss_r50_fpn_1x_coco.pth

Training starts from torchvision's ResNet-50, with the schedule and the learning rates of the paper.
Quoted COCO val2017 box AP: 39.4 (mmdetection).
"""

from atss_d2.checkpoint import apply_convention

from ..coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

apply_convention(model, convention="mmdet")
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
