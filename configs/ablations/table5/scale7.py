"""ATSS with anchors of side 7 x stride.

    python train_net.py --config-file configs/ablations/table5/scale7.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 5).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.sizes = [[56], [112], [224], [448], [896]]
