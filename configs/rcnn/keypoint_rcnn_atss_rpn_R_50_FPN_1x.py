"""Keypoint R-CNN, ResNet-50-FPN, 90k iterations: ATSS labels the anchors of the RPN.

    python train_net.py --config-file configs/rcnn/keypoint_rcnn_atss_rpn_R_50_FPN_1x.py \
        --num-gpus 8

Setting "sampled": Detectron2 draws 256 anchors of an image, with its own losses and recipe.
No AP is quoted: nobody has published one; with Detectron2's RPN it is 53.6, keypoint AP 64.0.
"""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from atss_d2.integration import ATSSRPN
from atss_d2.modeling import ATSSMatcher

from ..common.rcnn import dataloader, lr_multiplier, optimizer, train, zoo_model

model = zoo_model("keypoint_rcnn_fpn")  # whose RPN makes 1500 proposals in training
model.proposal_generator.update(_target_=ATSSRPN, anchor_matcher=L(ATSSMatcher)(topk=9))

_theirs = get_config("common/data/coco_keypoint.py").dataloader
dataloader.train.dataset = _theirs.train.dataset
dataloader.test.dataset = _theirs.test.dataset
dataloader.train.mapper.update(
    use_keypoint=True, keypoint_hflip_indices=_theirs.train.mapper.keypoint_hflip_indices
)
