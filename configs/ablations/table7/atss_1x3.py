"""ATSS with 1 scale x 3 aspect ratios per location.

    python train_net.py --config-file configs/ablations/table7/atss_1x3.py --num-gpus 8

Quoted COCO val2017 box AP: 39.2 (paper, Table 7).
"""

from .atss_3x3 import dataloader, lr_multiplier, model, optimizer, train

# The scale of a single anchor: 8 x stride.
model.anchor_generator.sizes = [[64], [128], [256], [512], [1024]]
model.head.num_anchors = 3
