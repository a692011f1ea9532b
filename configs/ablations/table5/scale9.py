"""ATSS with anchors of side 9 x stride.

    python train_net.py --config-file configs/ablations/table5/scale9.py --num-gpus 8

Quoted COCO val2017 box AP: 38.9 (paper, Table 5).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.sizes = [[72], [144], [288], [576], [1152]]
