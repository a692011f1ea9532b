"""configs/rcnn/: Detectron2's R-CNNs and recipe, with another RPN."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.proposal_generator import RPN
from omegaconf import OmegaConf

from atss_d2 import ATSSMatcher, list_configs
from atss_d2.config import get_config_path
from atss_d2.integration import ATSSRPN, ATSSRPNHead, ProbabilisticCascadeROIHeads
from atss_d2.modeling import ATSSCriterion, IoUBranchCriterion
from tests.detectron2_models import model_zoo

NAMES = [name for name in list_configs() if name.startswith("rcnn/")]
FIRST_STAGE = "rcnn/cascade_rcnn_atss_R_50_FPN_1x"
# Part of the name -> Detectron2's recipe for it.
ZOO = {
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py",
}


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    lines = ast.get_docstring(ast.parse(Path(get_config_path(name)).read_text())).splitlines()
    assert ", ResNet-50" in lines[0]
    is_baseline = "atss" not in name
    assert lines[-2].startswith("Detectron2's RPN" if is_baseline else "Setting ")
    if not is_baseline:
        assert ('"focal"' in lines[-2]) == ("focal" in name or name == FIRST_STAGE)
    assert lines[-1].startswith("Quoted COCO" if is_baseline else "No AP is quoted")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_detectron2s_model_with_another_rpn(configs, name):
    with torch.device("meta"):
        model = instantiate(configs[name].model)
    rpn = model.proposal_generator
    if "atss" not in name:
        assert type(rpn) is RPN
        return
    assert type(rpn) is ATSSRPN
    assert type(rpn.anchor_matcher) is ATSSMatcher
    num_anchors = 1 if name == FIRST_STAGE else 3
    assert (rpn.anchor_matcher.topk, rpn.anchor_matcher.num_anchors) == (9, num_anchors)
    is_focal = "focal" in name
    assert isinstance(rpn.rpn_head, ATSSRPNHead) == is_focal
    assert isinstance(rpn.criterion, IoUBranchCriterion) == is_focal


def test_an_atss_detector_as_the_first_stage(configs):
    """The numbers of CenterNet2; the first stage is ATSS's own, for one class."""
    cfg = configs[FIRST_STAGE]
    with torch.device("meta"):
        model = instantiate(cfg.model)
        atss = configs["coco/atss_R_50_FPN_1x"].model.copy()
        atss.num_classes = 1
        atss = instantiate(atss)
    rpn, heads = model.proposal_generator, model.roi_heads
    assert str(rpn.rpn_head) == str(atss.head)
    assert str(model.backbone) == str(atss.backbone)
    assert rpn.anchor_generator.strides == atss.anchor_generator.strides
    assert type(rpn.criterion) is ATSSCriterion
    assert rpn.pre_nms_topk == {True: 4000, False: 1000}
    assert rpn.post_nms_topk == {True: 2000, False: 256}
    assert rpn.nms_thresh == 0.9
    assert type(heads) is ProbabilisticCascadeROIHeads
    assert [x.thresholds[1] for x in heads.proposal_matchers] == [0.6, 0.7, 0.8]
    assert list(heads.box_in_features) == list(rpn.in_features) == ["p3", "p4", "p5", "p6", "p7"]
    assert (heads.box_pooler.min_level, heads.box_pooler.max_level) == (3, 7)
    warmup = instantiate(cfg.lr_multiplier)
    assert warmup(0) == pytest.approx(0.00025)
    assert warmup(3999 / 90000) < 1 == warmup(4000 / 90000)


@pytest.mark.parametrize("name", [name for name in NAMES if name != FIRST_STAGE])
def test_all_but_the_rpn_is_detectron2s_recipe(configs, name):
    zoo = next((path for part, path in ZOO.items() if part in name), ZOO["mask_rcnn"])
    ours, theirs = configs[name], model_zoo.get_config(zoo)
    if "cascade" in name:
        theirs.model = model_zoo.get_config("common/models/cascade_rcnn.py").model
        theirs.model.backbone.bottom_up.freeze_at = 2
    if "faster" in name or "cascade" in name:
        for key in ("mask_in_features", "mask_pooler", "mask_head"):
            theirs.model.roi_heads.pop(key)
    model, expected = ours.model.copy(), theirs.model
    changed = {"_target_", "anchor_matcher", "criterion"}
    for node in (model, expected):
        for key in changed:
            node.proposal_generator.pop(key, None)
        node.proposal_generator.head.pop("_target_")
    assert OmegaConf.to_container(model) == OmegaConf.to_container(expected)
    assert ours.optimizer == theirs.optimizer
    assert ours.lr_multiplier == theirs.lr_multiplier
    assert ours.train.max_iter == theirs.train.max_iter
    assert ours.train.init_checkpoint == theirs.train.init_checkpoint
    for split in ("train", "test"):
        assert ours.dataloader[split].dataset == theirs.dataloader[split].dataset
        mapper, expected = (instantiate(x.dataloader[split].mapper) for x in (ours, theirs))
        assert repr(mapper.augmentations) == repr(expected.augmentations)
        assert mapper.image_format == expected.image_format
        if split == "train":
            assert mapper.use_keypoint == expected.use_keypoint
            assert mapper.use_instance_mask == ("mask" in name or "panoptic" in name)
            same = mapper.keypoint_hflip_indices == expected.keypoint_hflip_indices
            assert np.all(same)
    assert ours.dataloader.train.total_batch_size == 16
