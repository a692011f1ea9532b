"""RetinaNet (#A=9) with all improvements of Table 1.

    python train_net.py --config-file configs/ablations/table7/retinanet_a9_improved.py --num-gpus 8

Quoted COCO val2017 box AP: 38.4 (paper, Table 7).
"""

from ..table1.retinanet_scalar import dataloader, lr_multiplier, model, optimizer, train
from .retinanet_a9 import model as _retinanet_a9

model.anchor_generator = _retinanet_a9.anchor_generator
model.head.num_anchors = 9
