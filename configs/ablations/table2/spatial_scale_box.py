"""Positives by spatial and scale constraint, regression from a box.

    python train_net.py --config-file configs/ablations/table2/spatial_scale_box.py --num-gpus 8

Quoted COCO val2017 box AP: 37.8 (paper, Table 2).
"""

from detectron2.config import LazyCall as L

from atss_d2 import ScaleRangeMatcher

from .iou_box import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(ScaleRangeMatcher)()
