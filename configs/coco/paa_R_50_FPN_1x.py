"""PAA, ResNet-50-FPN, 90k iterations: a mixture of two Gaussians selects by losses.

    python train_net.py --config-file configs/coco/paa_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 40.4 (authors' release; mmdetection).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import IoUBranchCriterion, PAAMatcher

from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.matcher = L(PAAMatcher)(topk=9)
model.criterion = L(IoUBranchCriterion)(
    box_reg_loss_weight=1.3, quality_weighted_box_loss=True, quality_loss_weight=0.5
)
model.score_voting = 0.025
