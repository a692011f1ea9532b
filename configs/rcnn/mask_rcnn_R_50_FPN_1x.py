"""Mask R-CNN, ResNet-50-FPN, 90k iterations: Detectron2's, to compare with.

    python train_net.py --config-file configs/rcnn/mask_rcnn_R_50_FPN_1x.py --num-gpus 8

Detectron2's RPN and recipe.
Quoted COCO val2017 box AP: 38.6, mask AP 35.2 (Detectron2's model zoo).
"""

from ..common.rcnn import dataloader, lr_multiplier, optimizer, train, zoo_model

model = zoo_model("mask_rcnn_fpn")
dataloader.train.mapper.use_instance_mask = True
