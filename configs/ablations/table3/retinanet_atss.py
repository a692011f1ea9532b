"""RetinaNet (#A=1) + ATSS: the paper's detector.

    python train_net.py --config-file configs/ablations/table3/retinanet_atss.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (paper, Table 3).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
