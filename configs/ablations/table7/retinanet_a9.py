"""RetinaNet with three scales and three aspect ratios per location.

    python train_net.py --config-file configs/ablations/table7/retinanet_a9.py --num-gpus 8

Quoted COCO val2017 box AP: 36.3 (paper, Table 7).
"""

from ..table1.retinanet import dataloader, lr_multiplier, model, optimizer, train

# Sides of 4 x stride, times 2^0, 2^(1/3) and 2^(2/3).
model.anchor_generator.update(
    sizes=[[side * 2 ** (i / 3) for i in range(3)] for side in (32, 64, 128, 256, 512)],
    aspect_ratios=[0.5, 1.0, 2.0],
)
model.head.num_anchors = 9
