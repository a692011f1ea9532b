"""Detectron2's other backbones, as a user would put them into a config."""

import sys
import types

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from atss_d2 import get_config
from atss_d2.modeling import build_fpn_with_p6p7


def regnet():
    return L(build_fpn_with_p6p7)(
        bottom_up=L(RegNet)(
            stem_class=SimpleStem,
            stem_width=8,
            block_class=ResBottleneckBlock,
            depth=6,
            w_a=12,
            w_0=8,
            w_m=2,
            group_width=8,
            norm="BN",
            out_features=["s2", "s3", "s4"],
        ),
        in_features=["s2", "s3", "s4"],
        out_channels=32,
    )


def swin():
    return L(build_fpn_with_p6p7)(
        bottom_up=L(SwinTransformer)(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[1, 2, 3],
            drop_path_rate=0.0,
        ),
        in_features=["p1", "p2", "p3"],
        out_channels=32,
    )


def vitdet():
    return L(SimpleFeaturePyramid)(
        net=L(ViT)(
            img_size=64,
            patch_size=16,
            embed_dim=16,
            depth=1,
            num_heads=2,
            window_size=0,
            use_rel_pos=True,
            out_feature="last_feat",
        ),
        in_feature="${.net.out_feature}",
        out_channels=32,
        scale_factors=[2.0, 1.0, 0.5],
        top_block=L(LastLevelMaxPool)(),
        norm="LN",
        square_pad=64,
    )


class StandInMlp(nn.Sequential):
    """Called as timm's, which Detectron2's ViT needs."""

    def __init__(self, in_features, hidden_features, act_layer):
        first, last = (
            nn.Linear(in_features, hidden_features),
            nn.Linear(hidden_features, in_features),
        )
        super().__init__(first, act_layer(), last)


@pytest.fixture
def timm(monkeypatch):
    """timm, or what takes its place where it is not installed."""
    try:
        import timm.models.layers  # noqa: F401
    except ImportError:
        layers = types.ModuleType("timm.models.layers")
        layers.Mlp, layers.DropPath = StandInMlp, nn.Dropout
        for name in ("timm", "timm.models"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "timm.models.layers", layers)


@pytest.mark.parametrize("backbone", [regnet, swin, vitdet])
def test_other_backbones(backbone, timm, tmp_path):
    model = get_config("coco/atss_R_50_FPN_1x").model
    cfg = OmegaConf.create({"model": model}, flags={"allow_objects": True})
    cfg.model.update(backbone=backbone(), num_classes=3, pixel_std=[57.0, 57.0, 57.0])
    if backbone is vitdet:  # p3 to p6
        cfg.model.anchor_generator.update(
            sizes=[[64], [128], [256], [512]], strides=[8, 16, 32, 64]
        )
        cfg.model.head_in_features = ["p3", "p4", "p5", "p6"]
    num_levels = len(cfg.model.head_in_features)
    cfg.model.head.update(input_shape=[ShapeSpec(channels=32)] * num_levels, conv_dims=[64])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    cfg = LazyConfig.load(str(tmp_path / "config.yaml"))
    model = instantiate(cfg.model)
    boxes = Boxes(torch.tensor([[8.0, 8.0, 60.0, 52.0]]))
    gt = Instances((60, 64), gt_boxes=boxes, gt_classes=torch.tensor([1]))
    batch = [{"image": torch.randint(0, 255, (3, 60, 64)).float(), "instances": gt}]
    losses = model.train()(batch * 2)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    first = next(model.backbone.parameters())
    assert first.grad.abs().sum() > 0
    assert isinstance(model.eval()(batch)[0]["instances"], Instances)
