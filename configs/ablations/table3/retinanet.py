"""RetinaNet (#A=1) with all improvements of Table 1.

    python train_net.py --config-file configs/ablations/table3/retinanet.py --num-gpus 8

Quoted COCO val2017 box AP: 37.0 (paper, Table 3).
"""

from ..table1.retinanet_scalar import dataloader, lr_multiplier, model, optimizer, train
