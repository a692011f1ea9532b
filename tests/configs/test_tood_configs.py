"""The configs of TOOD: its number of parameters, what it changes, its warm-up, its yaml keys."""

import copy
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from atss_d2 import ATSS
from atss_d2.checkpoint import apply_convention
from atss_d2.config import get_config_path, load_config
from atss_d2.modeling import ATSSMatcher, TaskAlignedCriterion, TaskAlignedMatcher, TOODHead

# ATSS has 32,244,250. Of its head, 8 layers of 256 x 256 x 9 + 3 x 256 become 6 without a bias,
# and centerness goes, 256 x 9 + 1.
LAYERS = 6 * (256 * 256 * 9 + 2 * 256) - 8 * (256 * 256 * 9 + 3 * 256) - (256 * 9 + 1)
# Attention 1536 -> 32 -> 6 and reduction 1536 -> 256 with norm, for each of two tasks.
DECOMPOSITIONS = 2 * (1536 * 32 + 32 + 32 * 6 + 6 + 1536 * 256 + 2 * 256)
# 1536 -> 64, and 3 x 3 -> 1 or 8.
ALIGNMENTS = 2 * (1536 * 64 + 64) + 64 * 9 * (1 + 8) + 1 + 8


def meta_model(model):
    with torch.device("meta"):
        return instantiate(model)


def test_the_model_of_the_paper(configs):
    model = meta_model(configs["coco/tood_R_50_FPN_1x"].model)
    assert isinstance(model, ATSS)
    assert isinstance(model.head, TOODHead)
    assert isinstance(model.criterion, TaskAlignedCriterion)
    num_parameters = sum(p.numel() for p in model.parameters())
    assert num_parameters == 32_244_250 + LAYERS + DECOMPOSITIONS + ALIGNMENTS
    rule = model.matcher
    assert isinstance(rule, TaskAlignedMatcher)
    assert (rule.topk, rule.alpha, rule.beta, rule.warm_up_iterations) == (13, 1, 6, 30000)
    assert isinstance(rule.warm_up, ATSSMatcher)
    assert rule.warm_up.topk == 9


def test_it_differs_from_atss_in_head_coder_rule_and_losses_only(configs):
    cfg, atss = (copy.deepcopy(configs[f"coco/{x}_R_50_FPN_1x"]) for x in ("tood", "atss"))
    del cfg.model.criterion
    for key in ("head", "box2box_transform", "matcher"):
        OmegaConf.update(cfg.model, key, None, force_add=True)
        OmegaConf.update(atss.model, key, None, force_add=True)
    # The head has no towers, which are parts by default.
    for x in (cfg, atss):
        del x.train.activation_checkpointing.parts
    assert cfg == atss


def test_the_head_follows_the_anchors(configs):
    cfg = copy.deepcopy(configs["coco/tood_R_50_FPN_1x"])
    assert meta_model(cfg.model).head.anchor_offset == 0.5
    cfg.model.anchor_generator.offset = 0.0
    assert meta_model(cfg.model).head.anchor_offset == 0.0


def test_the_small_one_has_its_parts_in_proportion(configs):
    cfg = configs["demo/tood_shapes_wide"]
    model = meta_model(cfg.model)
    assert isinstance(model.head, TOODHead)
    assert isinstance(model.criterion, TaskAlignedCriterion)
    assert len(model.head.shared_convs) == 3
    assert model.matcher.warm_up_iterations == cfg.train.max_iter // 3


def test_names_in_yaml_build_the_lazy_model(configs):
    folder = Path(get_config_path("coco/atss_R_50_FPN_1x")).parents[1]
    cfg = load_config(folder / "yaml/atss_R_50_FPN_1x.yaml")
    node = cfg.MODEL.ATSS
    node.HEAD.NAME, node.CRITERION.NAME = "TOODHead", "TaskAlignedCriterion"
    node.MATCHER.NAME, node.TASK_ALIGNED_MATCHER.WARM_UP_ITERATIONS = "TaskAlignedMatcher", 30000
    node.BOX_CODER, node.POINT_DISTANCES.CLAMP = "PointDistances", False
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    expected = meta_model(configs["coco/tood_R_50_FPN_1x"].model)
    assert str(model) == str(expected)
    rules = [vars(x.matcher) for x in (model, expected)]
    assert vars(rules[0].pop("warm_up")) == vars(rules[1].pop("warm_up"))
    assert rules[0] == rules[1]
    assert vars(model.box2box_transform) == vars(expected.box2box_transform)
    for name in ("cls_loss_gamma", "focal_loss_alpha", "focal_loss_gamma", "box_reg_loss_weight"):
        assert getattr(model.criterion, name) == getattr(expected.criterion, name)


def test_anchors_of_mmdetection_start_at_zero(configs):
    cfg = apply_convention(copy.deepcopy(configs["coco/tood_R_50_FPN_1x"]), "mmdet")
    assert cfg.model.head.anchor_offset == 0.0
