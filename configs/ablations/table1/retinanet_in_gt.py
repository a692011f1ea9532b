"""RetinaNet (#A=1) + GroupNorm + GIoU + positives only inside their box.

    python train_net.py --config-file configs/ablations/table1/retinanet_in_gt.py --num-gpus 8

Quoted COCO val2017 box AP: 35.3 (paper, Table 1).
"""

from .retinanet_giou import dataloader, lr_multiplier, model, optimizer, train

model.matcher.center_in_gt = True
