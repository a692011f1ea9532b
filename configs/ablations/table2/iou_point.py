"""Positives by IoU, regression from a point.

    python train_net.py --config-file configs/ablations/table2/iou_point.py --num-gpus 8

Quoted COCO val2017 box AP: 36.9 (paper, Table 2).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling.box_coding import PointDistances

from .iou_box import dataloader, lr_multiplier, model, optimizer, train

model.box2box_transform = L(PointDistances)()
model.head.bbox_pred_bias = 4.0
