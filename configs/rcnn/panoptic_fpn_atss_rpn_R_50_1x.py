"""Panoptic FPN, ResNet-50, 90k iterations: ATSS labels the anchors of the RPN.

    python train_net.py --config-file configs/rcnn/panoptic_fpn_atss_rpn_R_50_1x.py --num-gpus 8

Setting "sampled": Detectron2 draws 256 anchors of an image, with its own losses and recipe.
No AP is quoted: nobody has published one; with Detectron2's RPN it is 37.6, PQ 39.4.
"""

from detectron2.model_zoo import get_config

from ..common.rcnn import dataloader, lr_multiplier, optimizer, train, zoo_model
from .faster_rcnn_atss_rpn_R_50_FPN_1x import model as _model

model = zoo_model("panoptic_fpn")
model.proposal_generator = _model.proposal_generator

_theirs = get_config("common/data/coco_panoptic_separated.py").dataloader
dataloader.train.dataset = _theirs.train.dataset
dataloader.test.dataset = _theirs.test.dataset
dataloader.train.mapper.use_instance_mask = True
dataloader.evaluator = _theirs.evaluator
