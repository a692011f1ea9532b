"""ATSS with 1 scale x 1 aspect ratio per location: the paper's detector.

    python train_net.py --config-file configs/ablations/table7/atss_1x1.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 7).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
