"""ATSS with anchors of aspect ratio 1:1 (width : height), the default.

    python train_net.py --config-file configs/ablations/table6/aspect_1_1.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 6).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
