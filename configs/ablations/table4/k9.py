"""ATSS with k = 9 candidates per level, the default.

    python train_net.py --config-file configs/ablations/table4/k9.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 4).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
