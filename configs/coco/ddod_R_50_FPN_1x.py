"""DDOD, ResNet-50-FPN, 90k iterations: samples selected by predictions, levels weighted.

    python train_net.py --config-file configs/coco/ddod_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 41.6 (arXiv 2107.02963; mmdetection: 41.7).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DDODCriterion, DDODMatcher

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.head.deform_first_conv = True
model.matcher = L(DDODMatcher)(topk=9, cls_alpha=0.8, box_alpha=0.5)
model.criterion = L(DDODCriterion)()
model.test_score_type = "product"
