"""RetinaNet (#A=1) + GroupNorm in the towers.

    python train_net.py --config-file configs/ablations/table1/retinanet_gn.py --num-gpus 8

Quoted COCO val2017 box AP: 33.4 (paper, Table 1).
"""

from .retinanet import dataloader, lr_multiplier, model, optimizer, train

model.head.norm = "GN"
