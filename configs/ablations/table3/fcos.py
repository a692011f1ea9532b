"""FCOS with the improvements of Table 1.

    python train_net.py --config-file configs/ablations/table3/fcos.py --num-gpus 8

Quoted COCO val2017 box AP: 37.8 (paper, Table 3).
"""

from ..table1.fcos import dataloader, lr_multiplier, model, optimizer, train
