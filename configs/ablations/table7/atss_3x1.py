"""ATSS with 3 scales x 1 aspect ratio per location.

    python train_net.py --config-file configs/ablations/table7/atss_3x1.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 7).
"""

from .atss_3x3 import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.aspect_ratios = [1.0]
model.head.num_anchors = 3
