"""Faster R-CNN, ResNet-50-FPN, 90k iterations: an RPN with the rule and the losses of ATSS.

    python train_net.py --config-file configs/rcnn/faster_rcnn_atss_rpn_focal_R_50_FPN_1x.py \
        --num-gpus 8

Setting "focal": all anchors, focal and GIoU loss, IoU branch; otherwise Detectron2's recipe.
No AP is quoted: nobody has published one; with Detectron2's RPN it is 37.9.
"""

from detectron2.config import LazyCall as L

from atss_d2.integration import ATSSRPNHead
from atss_d2.modeling import IoUBranchCriterion

from .faster_rcnn_atss_rpn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.proposal_generator.head._target_ = ATSSRPNHead
model.proposal_generator.criterion = L(IoUBranchCriterion)()
