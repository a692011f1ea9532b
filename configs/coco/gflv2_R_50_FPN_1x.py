"""GFLv2, ResNet-50-FPN, 90k iterations: GFL, and the distributions' shape multiplies the score.

    python train_net.py --config-file configs/coco/gflv2_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 41.0 (arXiv 2011.12885).
"""

from atss_d2.modeling import GFLv2Head

from .gfl_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

del model.head.with_centerness
model.head.update(_target_=GFLv2Head, topk=4)
