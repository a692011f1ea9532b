"""ATSS, ResNet-101-FPN, 180k iterations with multi-scale training.

    python train_net.py --config-file configs/coco/atss_R_101_FPN_2x.py --num-gpus 8

Quoted COCO box AP: val2017 43.5 (authors' release), test-dev 43.6 (paper, Table 8).
"""

from ..common.schedule import lr_multiplier_2x as lr_multiplier
from .atss_R_101_FPN_1x import dataloader, model, optimizer, train

# Every integer shorter side from 640 to 800.
dataloader.train.mapper.augmentations[0].update(short_edge_length=[640, 800], sample_style="range")
train.max_iter = 180000
