"""RetinaNet (#A=1) + GroupNorm + GIoU + in GT box + centerness.

    python train_net.py --config-file configs/ablations/table1/retinanet_centerness.py --num-gpus 8

Quoted COCO val2017 box AP: 36.8 (paper, Table 1).
"""

from .retinanet_in_gt import dataloader, lr_multiplier, model, optimizer, train

model.head.with_centerness = True
