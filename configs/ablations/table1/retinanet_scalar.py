"""RetinaNet (#A=1) + GroupNorm + GIoU + in GT box + centerness + scalar per level.

    python train_net.py --config-file configs/ablations/table1/retinanet_scalar.py --num-gpus 8

Quoted COCO val2017 box AP: 37.0 (paper, Table 1).
"""

from .retinanet_centerness import dataloader, lr_multiplier, model, optimizer, train

model.head.with_scales = True
