"""ATSS with anchors of side 6 x stride.

    python train_net.py --config-file configs/ablations/table5/scale6.py --num-gpus 8

Quoted COCO val2017 box AP: 39.2 (paper, Table 5).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.sizes = [[48], [96], [192], [384], [768]]
