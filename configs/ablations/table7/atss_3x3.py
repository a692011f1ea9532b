"""RetinaNet (#A=9) with all improvements + ATSS: 3 scales x 3 aspect ratios.

    python train_net.py --config-file configs/ablations/table7/atss_3x3.py --num-gpus 8

Quoted COCO val2017 box AP: 39.2 (paper, Table 7).
"""

from detectron2.config import LazyCall as L

from atss_d2 import ATSSMatcher

from .retinanet_a9_improved import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(ATSSMatcher)(topk=9, num_anchors="${..head.num_anchors}")
