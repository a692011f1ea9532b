"""The configs of VFNet: how many parameters it has, what it changes, and its yaml keys."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from atss_d2 import ATSS
from atss_d2.config import get_config_path, load_config
from atss_d2.modeling import VFNetCriterion, VFNetHead
from atss_d2.modeling.box_coding import PointDistances

# ATSS has 32,244,250. VFNet loses one of four layers in each tower, 2 x (256 x 256 x 9 + 3 x 256),
# and the biases of the others, 6 x 256; and centerness, 256 x 9 + 1. It gains a layer without bias
# for first boxes, two deformable convolutions without bias, a predictor of factors, 4 x (256 x 9 +
# 1), and 5 scales.
NUM_PARAMETERS = 32_244_250 - 1_181_184 - 1_536 - 2_305 + 590_336 + 2 * 589_824 + 9_220 + 5


def meta_model(model):
    with torch.device("meta"):
        return instantiate(model)


def test_the_model_of_the_authors(configs):
    model = meta_model(configs["coco/vfnet_R_50_FPN_1x"].model)
    assert isinstance(model.head, VFNetHead)
    assert isinstance(model.criterion, VFNetCriterion)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS
    assert model.head.unit_distance == 8
    assert model.box2box_transform.anchor_scale == 8


def test_it_differs_from_atss_in_head_coder_losses_and_warm_up_only(configs):
    cfg, atss = (copy.deepcopy(configs[f"coco/{x}_R_50_FPN_1x"]) for x in ("vfnet", "atss"))
    del cfg.model.criterion
    for key in ("head._target_", "box2box_transform"):
        OmegaConf.update(cfg.model, key, None, force_add=True)
        OmegaConf.update(atss.model, key, None, force_add=True)
    cfg.lr_multiplier.update(warmup_method="constant", warmup_factor=1 / 3)
    assert cfg == atss


def test_the_small_one_has_the_head_of_the_large_one(configs):
    model = meta_model(configs["demo/vfnet_shapes_wide"].model)
    assert isinstance(model.head, VFNetHead)
    assert isinstance(model.criterion, VFNetCriterion)
    assert len(model.head.cls_subnet) == 6  # two layers with norm and ReLU


def test_names_in_yaml_build_the_lazy_model(configs):
    folder = Path(get_config_path("coco/atss_R_50_FPN_1x")).parents[1]
    cfg = load_config(folder / "yaml/atss_R_50_FPN_1x.yaml")
    node = cfg.MODEL.ATSS
    node.HEAD.NAME, node.CRITERION.NAME = "VFNetHead", "VFNetCriterion"
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), pytest.raises(ValueError, match="MODEL.ATSS.BOX_CODER in yaml"):
        build_model(cfg)
    node.BOX_CODER = "PointDistances"
    with torch.device("meta"):
        model = build_model(cfg)
    assert isinstance(model, ATSS)
    assert isinstance(model.box2box_transform, PointDistances)
    expected = meta_model(configs["coco/vfnet_R_50_FPN_1x"].model)
    assert str(model) == str(expected)
    assert [(key, p.shape) for key, p in model.named_parameters()] == [
        (key, p.shape) for key, p in expected.named_parameters()
    ]
    for name in ("first_box_reg_loss_weight", "varifocal_alpha", "box_reg_loss_weight"):
        assert getattr(model.criterion, name) == getattr(expected.criterion, name)
