"""Positives by spatial and scale constraint, regression from a point.

    python train_net.py --config-file configs/ablations/table2/spatial_scale_point.py --num-gpus 8

Quoted COCO val2017 box AP: 37.8 (paper, Table 2).
"""

from ..table1.fcos import dataloader, lr_multiplier, model, optimizer, train
