"""ATSS with anchors of aspect ratio 2:1 (width : height).

    python train_net.py --config-file configs/ablations/table6/aspect_2_1.py --num-gpus 8

No AP is quoted: the paper calls results insensitive to it (1:1 has 39.3, Table 6).
"""

from ...coco.atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.aspect_ratios = [0.5]  # height / width
