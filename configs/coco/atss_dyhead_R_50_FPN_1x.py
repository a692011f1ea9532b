"""ATSS, ResNet-50-FPN with six blocks of DyHead (arXiv 2106.08322), 90k iterations.

    python train_net.py --config-file configs/coco/atss_dyhead_R_50_FPN_1x.py --num-gpus 8

The authors' release and mmdetection's models read the offsets of the upper level otherwise, see
atss_d2/modeling/dyhead.py: model.backbone.offsets_of_upper_level=flattened is what they trained.

Quoted COCO val2017 box AP: 42.4 (authors' release); 43.3 (mmdetection, R-50 of torchvision).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DyHead

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(DyHead)(
    backbone=model.backbone,
    num_blocks=6,
    size_divisibility=128,  # every level is exactly half as large as the next finer one
)
model.head.update(conv_dims=[], pred_kernel_size=1)  # no towers, 1x1 predictors
