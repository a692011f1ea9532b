"""ATSS with k = 11 candidates per level.

    python train_net.py --config-file configs/ablations/table4/k11.py --num-gpus 8

Quoted COCO val2017 box AP: 39.1 (paper, Table 4).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.matcher.topk = 11
