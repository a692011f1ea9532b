"""Checkpoints of mmdetection's VFNet: names, settings, detections and losses."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances

from atss_d2 import get_config
from atss_d2.checkpoint import apply_convention, convention_differences, convert_state_dict
from atss_d2.commands import convert_weights
from atss_d2.config import load_config
from tests import foreign_checkpoints as foreign
from tests import vfnet
from tests.checkpoint.test_conversion import NoBackbone, build
from tests.reference import published_quality

YAML = Path(__file__).resolve().parents[2] / "configs/yaml/atss_R_50_FPN_1x.yaml"


def checkpoint(channels=256, device="meta", **options):
    """The state dict of a whole detector of random weights."""
    theirs = foreign.mmdet(
        tower_length=3,
        class_predictor="vfnet_cls",
        predictors=[("vfnet_reg", 4), ("vfnet_reg_refine", 4)],
        channels=channels,
        device=device,
        **options,
    )
    more = foreign.Weights(1, device)
    more.conv("bbox_head.vfnet_reg_conv.conv", channels, channels, 3)
    more.group_norm("bbox_head.vfnet_reg_conv.gn", channels)
    for name in ("vfnet_reg_refine_dconv", "vfnet_cls_dconv"):
        more.conv(f"bbox_head.{name}", channels, channels, 3)
    for level in range(5):
        more.uniform(f"bbox_head.scales_refine.{level}.scale", low=0.5, high=1.5)
    return {**theirs, **more}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        (
            {"blocks": foreign.R_101, "dcn": (False, True, True, True), "dcn_in_tower": True},
            {
                "backbone.bottom_up.stages.depth": 101,
                "backbone.bottom_up.stages.deform_on_per_stage": [False, True, True, True],
                "head.deform_last_conv": True,
            },
        ),
    ],
)
def test_every_key_finds_its_place(options, settings):
    weights, report = convert_state_dict(checkpoint(**options))
    architecture = report.architecture
    assert (architecture.detector, architecture.config) == ("vfnet", "coco/vfnet_R_50_FPN_1x")
    assert architecture.settings == settings
    with torch.device("meta"):
        model = build(report)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in weights.items()
    }
    assert report.count("missing", "unexpected", "misshapen") == 0


def test_the_tool_writes_weights_and_config(tmp_path):
    """mmdetection's VFNet makes P7 from ReLU(P6), other than its ATSS."""
    theirs = checkpoint(channels=64, device="cpu", num_classes=3, width=8)
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    output = tmp_path / "ours.pth"
    assert convert_weights.main([str(tmp_path / "theirs.pth"), str(output), "--quiet"]) == 0
    model = instantiate(load_config(output.with_suffix(".py")).model)
    model.load_state_dict(torch.load(output)["model"])
    assert convention_differences(model, "mmdet") == []
    assert torch.equal(
        model.head.refined_scales[3].scale, theirs["bbox_head.scales_refine.3.scale"]
    )
    cfg = apply_convention(get_config("coco/atss_R_50_FPN_1x"), "mmdet").model
    model.backbone.top_block = instantiate(cfg.backbone).top_block
    assert any("p7_relu" in x for x in convention_differences(model, "mmdet"))


def test_conventions_in_yaml():
    cfg = load_config(YAML)
    assert not apply_convention(cfg, "mmdet").MODEL.ATSS.FPN.P7_RELU
    cfg.MODEL.ATSS.HEAD.NAME = "VFNetHead"
    assert apply_convention(cfg, "mmdet").MODEL.ATSS.FPN.P7_RELU


@pytest.fixture(scope="module")
def published_model():
    """A model of the convention with the published weights of the head."""
    cfg = get_config("coco/vfnet_R_50_FPN_1x").model
    cfg.backbone = L(NoBackbone)()
    cfg.num_classes = 5
    cfg.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[32] * 3)
    model = instantiate(apply_convention(cfg, "mmdet"))
    theirs = {
        key.removeprefix("vfnet.sd."): vfnet.tensor(key)
        for key in published_quality()
        if key.startswith("vfnet.sd.")
    }
    weights, _ = convert_state_dict(theirs, expected=model)  # recognized by its names
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def test_detections_are_theirs(published_model):
    features = vfnet.of_levels("feat")
    sizes = [(h, w) for w, h in vfnet.tensor("sizes_wh").tolist()]
    images = ImageList(torch.zeros(2, 3, 288, 224), sizes)
    model = published_model.eval()
    for i, found in enumerate(model.forward_inference(images, features, model.head(features))):
        vfnet.assert_published_detections(
            "vfnet", i, found.pred_boxes.tensor, found.scores, found.pred_classes
        )


@pytest.mark.parametrize("case", ["vfnet", "vfnet.empty0", "vfnet.empty"])
def test_losses_are_theirs(published_model, case):
    """With boxes in both images, in the second only, and in none."""
    features, instances = vfnet.of_levels("feat"), []
    for i in range(2):
        gt = Instances((288, 224))
        gt.gt_boxes = Boxes(vfnet.tensor(f"gt_boxes_{i}"))
        gt.gt_classes = vfnet.tensor(f"gt_classes_{i}")
        is_empty = case == "vfnet.empty" or (case == "vfnet.empty0" and i == 0)
        instances.append(gt[:0] if is_empty else gt)
    model = published_model.train()
    losses = model.forward_training(None, features, model.head(features), instances)
    for ours, theirs in vfnet.LOSSES.items():
        expected = vfnet.tensor(f"{case}.{theirs}").item()
        assert losses[ours].item() == pytest.approx(expected, rel=1e-5, abs=1e-7), ours
