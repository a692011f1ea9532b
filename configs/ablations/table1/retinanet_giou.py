"""RetinaNet (#A=1) + GroupNorm + GIoU loss.

    python train_net.py --config-file configs/ablations/table1/retinanet_giou.py --num-gpus 8

Quoted COCO val2017 box AP: 34.9 (paper, Table 1).
"""

from .retinanet_gn import dataloader, lr_multiplier, model, optimizer, train

model.update(box_reg_loss_type="giou", box_reg_loss_weight=2.0)
