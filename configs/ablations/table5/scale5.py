"""ATSS with anchors of side 5 x stride.

    python train_net.py --config-file configs/ablations/table5/scale5.py --num-gpus 8

Quoted COCO val2017 box AP: 39.0 (paper, Table 5).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.sizes = [[40], [80], [160], [320], [640]]
