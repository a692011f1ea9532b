"""FCOS + ATSS: positives by Algorithm 1, regression from a point.

    python train_net.py --config-file configs/ablations/table3/fcos_atss.py --num-gpus 8

Quoted COCO val2017 box AP: 39.2 (paper, Table 3).
"""

from detectron2.config import LazyCall as L

from atss_d2 import ATSSMatcher

from .fcos import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(ATSSMatcher)(topk=9)
