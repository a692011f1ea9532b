"""The configs with DyHead: their parts, and how many parameters they have."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model

from atss_d2.config import get_config_path, load_config
from atss_d2.modeling import DyHead
from atss_d2.modeling.dyhead import DyHeadBlock

# ATSS has 32,244,250. It loses towers of 2 x 4 (256 x 256 x 9 + 3 x 256) and 8 of the 9 x 256
# weights of each of its 85 predicted values. A block has 256 x 27 x 9 + 27 parameters for offsets,
# 3 x (256 x 256 x 9 + 2 x 256) in convolutions and norms, 256 + 1 for the weights of levels, and
# 256 x 64 + 64 + 64 x 1024 + 1024 in its DyReLU.
NUM_PARAMETERS = 32_244_250 - 4_724_736 - 174_080 + 6 * 1_916_508


def test_the_model_of_the_authors(configs):
    with torch.device("meta"):
        model = instantiate(configs["coco/atss_dyhead_R_50_FPN_1x"].model)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS
    assert isinstance(model.backbone, DyHead)
    assert len(model.backbone.blocks) == 6
    assert not any(block.reads_flattened for block in model.backbone.blocks)
    assert model.backbone.size_divisibility == 128
    assert len(model.head.cls_subnet) == len(model.head.bbox_subnet) == 0
    assert model.head.cls_score.kernel_size == (1, 1)
    frozen = {name.split(".")[3] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


def test_it_differs_from_atss_in_neck_and_head_only(configs):
    cfg, atss = (
        copy.deepcopy(configs[f"coco/{name}_R_50_FPN_1x"]) for name in ("atss_dyhead", "atss")
    )
    assert cfg.model.backbone.backbone == atss.model.backbone
    for key in ("backbone", "head"):
        del cfg.model[key], atss.model[key]
    assert cfg == atss


def test_yaml_keys_build_the_lazy_model(configs):
    folder = Path(get_config_path("coco/atss_R_50_FPN_1x")).parents[1]
    cfg = load_config(folder / "yaml/atss_R_50_FPN_1x.yaml")
    node = cfg.MODEL.ATSS
    node.DY_HEAD.NUM_BLOCKS, node.DY_HEAD.SIZE_DIVISIBILITY = 6, 128
    node.HEAD.CONV_DIMS, node.HEAD.PRED_KERNEL_SIZE = (), 1
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        expected = instantiate(configs["coco/atss_dyhead_R_50_FPN_1x"].model)
    assert str(model) == str(expected)
    assert model.backbone.padding_constraints == expected.backbone.padding_constraints


@pytest.mark.parametrize("name", ["demo/atss_dyhead_shapes_wide"])
def test_the_pretrained_part_learns_slowly(configs, name):
    """Although DyHead adds a prefix to the names of its parameters."""
    cfg = configs[name]
    with torch.device("meta"):
        model = instantiate(cfg.model)
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    slow = {key for key, _ in model.named_parameters() if factor(key) != 1}
    assert slow == {f"backbone.backbone.bottom_up.{k}" for k, _ in bottom_up(model)}
    assert sum(isinstance(module, DyHeadBlock) for module in model.modules()) == 1


def bottom_up(model):
    return model.backbone.backbone.bottom_up.named_parameters()
