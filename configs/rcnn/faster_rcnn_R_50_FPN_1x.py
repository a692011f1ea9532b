"""Faster R-CNN, ResNet-50-FPN, 90k iterations: Detectron2's, to compare with.

    python train_net.py --config-file configs/rcnn/faster_rcnn_R_50_FPN_1x.py --num-gpus 8

Detectron2's RPN and recipe.
Quoted COCO val2017 box AP: 37.9 (Detectron2's model zoo).
"""

from ..common.rcnn import dataloader, lr_multiplier, optimizer, train, without_masks, zoo_model

model = without_masks(zoo_model("mask_rcnn_fpn"))
