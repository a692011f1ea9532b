"""Cascade R-CNN, ResNet-50-FPN, 90k iterations: an ATSS detector of one class is the first stage.

    python train_net.py --config-file configs/rcnn/cascade_rcnn_atss_R_50_FPN_1x.py --num-gpus 8

As CenterNet2 (arXiv 2103.07461): P3 to P7, 256 proposals, score sqrt(class x proposal).
Setting "focal": all anchors, the losses of ATSS; its recipe clips gradients and warms up longer.
No AP is quoted: none is verified; Cascade R-CNN has 40.3, CenterNet2 42.9.
"""

from detectron2.config import LazyCall as L

from atss_d2.integration import ATSSRPN, ProbabilisticCascadeROIHeads
from atss_d2.modeling import ATSSCriterion

from ..common.models.atss import model as _atss
from .cascade_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

_levels = _atss.head_in_features
for _name in ("backbone", "pixel_mean", "pixel_std", "input_format"):
    model[_name] = _atss[_name]
model.proposal_generator.update(
    _target_=ATSSRPN,
    in_features=_levels,
    head=_atss.head,
    anchor_generator=_atss.anchor_generator,
    anchor_matcher=_atss.matcher,
    box2box_transform=_atss.box2box_transform,
    criterion=L(ATSSCriterion)(),
    pre_nms_topk=[4000, 1000],
    post_nms_topk=[2000, 256],
    nms_thresh=0.9,
)
model.proposal_generator.head.num_classes = 1
model.roi_heads._target_ = ProbabilisticCascadeROIHeads
model.roi_heads.box_in_features = _levels
model.roi_heads.box_pooler.scales = [1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128]
for _matcher, _iou in zip(model.roi_heads.proposal_matchers, (0.6, 0.7, 0.8)):
    _matcher.thresholds = [_iou]

lr_multiplier.update(warmup_length=4000 / 90000, warmup_factor=0.00025)
train.clip_gradients.enabled = True
