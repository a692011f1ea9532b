"""GFL, ResNet-50-FPN, 90k iterations: the class score learns the IoU, sides are distributions.

    python train_net.py --config-file configs/coco/gfl_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 40.2 (arXiv 2006.04388, Table 1; mmdetection).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DistanceDistributions, SoftTargetCriterion

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.box2box_transform = L(DistanceDistributions)(num_bins=17)
model.head.update(with_centerness=False, num_box_values=4 * 17)
model.criterion = L(SoftTargetCriterion)(
    cls_loss="quality_focal", box_weights="score", distribution_loss_weight=0.25
)
