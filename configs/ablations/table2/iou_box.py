"""Positives by IoU, regression from a box.

    python train_net.py --config-file configs/ablations/table2/iou_box.py --num-gpus 8

Quoted COCO val2017 box AP: 37.0 (paper, Table 2).
"""

from ..table1.retinanet_scalar import dataloader, lr_multiplier, model, optimizer, train
