"""ATSS with an IoU branch instead of centerness, ResNet-50-FPN, 90k iterations.

    python train_net.py --config-file configs/coco/atss_iou_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 39.4 (DDOD's repository).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import IoUBranchCriterion

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.criterion = L(IoUBranchCriterion)(quality_weighted_box_loss=False)
