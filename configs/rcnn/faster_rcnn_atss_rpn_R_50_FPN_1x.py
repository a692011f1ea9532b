"""Faster R-CNN, ResNet-50-FPN, 90k iterations: ATSS labels the anchors of the RPN.

    python train_net.py --config-file configs/rcnn/faster_rcnn_atss_rpn_R_50_FPN_1x.py --num-gpus 8

Setting "sampled": Detectron2 draws 256 anchors of an image, with its own losses and recipe.
No AP is quoted: nobody has published one; with Detectron2's RPN it is 37.9.
"""

from detectron2.config import LazyCall as L

from atss_d2.integration import ATSSRPN
from atss_d2.modeling import ATSSMatcher

from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.proposal_generator.update(_target_=ATSSRPN, anchor_matcher=L(ATSSMatcher)(topk=9))
