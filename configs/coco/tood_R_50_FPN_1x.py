"""TOOD, ResNet-50-FPN, 90k iterations: samples by task alignment after a warm-up, and the T-head.

    python train_net.py --config-file configs/coco/tood_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 42.5 (authors' release), 42.4 (mmdetection).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import ATSSMatcher, TaskAlignedCriterion, TaskAlignedMatcher, TOODHead
from atss_d2.modeling.box_coding import PointDistances

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.head.update(_target_=TOODHead, conv_dims=[256] * 6)
model.head.anchor_offset = "${..anchor_generator.offset}"
model.box2box_transform = L(PointDistances)(clamp=False)
# 4 of 12 epochs; in a schedule of another length, a third of it.
model.matcher = L(TaskAlignedMatcher)(warm_up=L(ATSSMatcher)(topk=9), warm_up_iterations=30000)
model.criterion = L(TaskAlignedCriterion)()
train.activation_checkpointing.parts = ["backbone", "head.shared_convs.?", "head.*_decomposition"]
