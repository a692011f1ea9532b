"""ATSS with varifocal loss, ResNet-50-FPN, 90k iterations: the class score learns the IoU.

    python train_net.py --config-file configs/coco/atss_vfl_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 40.2 (VFNet's repository; 39.3 with focal loss).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import SoftTargetCriterion

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.head.with_centerness = False
model.criterion = L(SoftTargetCriterion)(cls_loss="varifocal", box_weights="centerness")
