"""FCOS + center sampling: the light form of ATSS.

    python train_net.py --config-file configs/ablations/table3/fcos_center_sampling.py --num-gpus 8

Quoted COCO val2017 box AP: 38.6 (paper, Table 3).
"""

from detectron2.config import LazyCall as L

from atss_d2 import CenterSamplingMatcher

from .fcos import dataloader, lr_multiplier, model, optimizer, train

# The 9 points per level nearest to the center, if they are in the level's scale range.
model.matcher = L(CenterSamplingMatcher)(radius=None, topk=9)
