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
from atss_d2.integration import ATSSRPN, ATSSRPNHead
from atss_d2.modeling import IoUBranchCriterion
from tests.detectron2_models import model_zoo

NAMES = [name for name in list_configs() if name.startswith("rcnn/")]
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
        assert ('"focal"' in lines[-2]) == ("focal" in name)
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
    assert (rpn.anchor_matcher.topk, rpn.anchor_matcher.num_anchors) == (9, 3)
    is_focal = "focal" in name
    assert isinstance(rpn.rpn_head, ATSSRPNHead) == is_focal
    assert isinstance(rpn.criterion, IoUBranchCriterion) == is_focal


@pytest.mark.parametrize("name", NAMES)
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
