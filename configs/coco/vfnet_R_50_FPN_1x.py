"""VFNet, ResNet-50-FPN, 90k iterations: boxes are refined, and scored by varifocal loss.

    python train_net.py --config-file configs/coco/vfnet_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 41.6 (authors' release; mmdetection).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.box2box_transform = L(PointDistances)()
model.head._target_ = VFNetHead
model.criterion = L(VFNetCriterion)()
lr_multiplier.update(warmup_method="linear", warmup_factor=0.1)
