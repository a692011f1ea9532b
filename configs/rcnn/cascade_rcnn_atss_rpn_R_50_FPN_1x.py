"""Cascade R-CNN, ResNet-50-FPN, 90k iterations: ATSS labels the anchors of the RPN.

    python train_net.py --config-file configs/rcnn/cascade_rcnn_atss_rpn_R_50_FPN_1x.py --num-gpus 8

Setting "sampled": Detectron2 draws 256 anchors of an image, with its own losses and recipe.
No AP is quoted: nobody has published one; with mmdetection's RPN it is 40.3.
"""

from .cascade_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train
from .faster_rcnn_atss_rpn_R_50_FPN_1x import model as _model

model.proposal_generator = _model.proposal_generator
