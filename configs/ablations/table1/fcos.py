"""FCOS with the improvements that RetinaNet (#A=1) gets in this table.

    python train_net.py --config-file configs/ablations/table1/fcos.py --num-gpus 8

Quoted COCO val2017 box AP: 37.8 (paper, Table 1).
"""

from detectron2.config import LazyCall as L

from atss_d2 import ScaleRangeMatcher
from atss_d2.modeling.box_coding import PointDistances

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(ScaleRangeMatcher)()
model.box2box_transform = L(PointDistances)()
model.head.bbox_pred_bias = 4.0
