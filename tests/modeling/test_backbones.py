import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone

from atss_d2 import add_atss_config
from atss_d2.modeling.backbones import make_resnet_stages
from atss_d2.modeling.deform_conv import DeformBottleneckBlock

RES2_TO_RES5 = ["res2", "res3", "res4", "res5"]

# A ResNet-50 with few channels, for tests that compute.
NARROW = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 8}

RESNETS = {
    "R-18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "R-34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "R-50": {},
    "R-101": {"DEPTH": 101},
    "R-152": {"DEPTH": 152},
    "X-101-32x8d": {
        "DEPTH": 101,
        "NUM_GROUPS": 32,
        "WIDTH_PER_GROUP": 8,
        "STRIDE_IN_1X1": False,
    },
    "X-101-64x4d": {
        "DEPTH": 101,
        "NUM_GROUPS": 64,
        "WIDTH_PER_GROUP": 4,
        "STRIDE_IN_1X1": False,
    },
}


def _cfg(out_features=("res3", "res4", "res5"), freeze_at=2, **resnets):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_atss_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.OUT_FEATURES = list(out_features)
    cfg.MODEL.FPN.IN_FEATURES = list(out_features)
    for key, value in resnets.items():
        assert key in cfg.MODEL.RESNETS
        cfg.MODEL.RESNETS[key] = value
    return cfg


def _shapes(module):
    return [(key, tuple(value.shape)) for key, value in module.state_dict().items()]


def _with_random_norms(module):
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("name", RESNETS)
def test_bottom_up_has_detectron2s_parameters(name):
    cfg = _cfg(**RESNETS[name])
    with torch.device("meta"):
        ours = build_backbone(cfg).bottom_up
        theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert _shapes(ours) == _shapes(theirs)
    assert ours.output_shape() == theirs.output_shape()
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in theirs.parameters()
    ]


@pytest.mark.parametrize(
    "resnets",
    [
        {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
        NARROW,
        {**NARROW, "STRIDE_IN_1X1": False},
        {**NARROW, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 2},
        {**NARROW, "RES5_DILATION": 2},
    ],
    ids=str,
)
def test_bottom_up_computes_what_detectron2s_does(resnets):
    cfg = _cfg(out_features=RES2_TO_RES5, **resnets)
    theirs = _with_random_norms(build_resnet_backbone(cfg, ShapeSpec(channels=3)))
    stages = make_resnet_stages(**{key.lower(): value for key, value in resnets.items()})
    stem = BasicStem(out_channels=resnets.get("STEM_OUT_CHANNELS", 64), norm="FrozenBN")
    ours = ResNet(stem, stages, out_features=RES2_TO_RES5)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 66, 93)
    with torch.no_grad():
        features, expected = ours(image), theirs(image)
    assert ours.output_shape() == theirs.output_shape()
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_fpn_differs_from_retinanets_in_the_input_of_p6():
    cfg = _cfg()
    with torch.device("meta"):
        ours = build_backbone(cfg)
        theirs = build_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    different = set(_shapes(ours)) ^ set(_shapes(theirs))
    assert different == {
        ("top_block.p6.weight", (256, 256, 3, 3)),  # from P5
        ("top_block.p6.weight", (256, 2048, 3, 3)),  # from C5
    }
    assert ours.output_shape() == theirs.output_shape()
    assert ours.size_divisibility == 32


@pytest.mark.parametrize("p7_relu", [True, False])
def test_p6_comes_from_p5_and_p7_from_p6_with_or_without_relu(p7_relu):
    cfg = _cfg(**NARROW)
    add_atss_config(cfg)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.ATSS.FPN.P7_RELU = p7_relu
    fpn = build_backbone(cfg)
    with torch.no_grad():
        features = fpn(torch.randn(1, 3, 64, 96))
        sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
        assert [tuple(x.shape) for x in features.values()] == [(1, 32, *size) for size in sizes]
        p6 = fpn.top_block.p6(features["p5"])
        torch.testing.assert_close(features["p6"], p6)
        assert (p6 < 0).any()
        torch.testing.assert_close(features["p7"], fpn.top_block.p7(p6.relu() if p7_relu else p6))


def test_fpn_keys_have_an_effect():
    cfg = _cfg(out_features=["res2", "res3", "res4"], freeze_at=0, **NARROW)
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    fpn = build_backbone(cfg)
    assert list(fpn.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert fpn.top_block.in_feature == "p4"
    assert fpn._fuse_type == "avg"
    assert all(p.requires_grad for p in fpn.parameters())


@pytest.mark.parametrize(("modulated", "groups", "channels"), [(True, 1, 27), (False, 2, 36)])
def test_deformable_stages_add_the_model_zoos_parameters(modulated, groups, channels):
    with torch.device("meta"):
        plain = build_backbone(_cfg())
        deformable = build_backbone(
            _cfg(
                DEFORM_ON_PER_STAGE=[False, False, True, True],
                DEFORM_MODULATED=modulated,
                DEFORM_NUM_GROUPS=groups,
            )
        )
    added = {
        (f"bottom_up.{stage}.{i}.conv2_offset.{what}", (channels, *shape))
        for stage, blocks, bottleneck in (("res4", 6, 256), ("res5", 3, 512))
        for i in range(blocks)
        for what, shape in (("weight", (bottleneck, 3, 3)), ("bias", ()))
    }
    assert set(_shapes(deformable)) == set(_shapes(plain)) | added
    names = [key for key, _ in deformable.named_parameters()]
    first = names.index("bottom_up.res4.0.shortcut.weight")
    assert names[first : first + 6] == [
        "bottom_up.res4.0.shortcut.weight",
        "bottom_up.res4.0.conv1.weight",
        "bottom_up.res4.0.conv2_offset.weight",
        "bottom_up.res4.0.conv2_offset.bias",
        "bottom_up.res4.0.conv2.weight",
        "bottom_up.res4.0.conv3.weight",
    ]


def test_deformable_network_starts_as_the_plain_one_and_learns_offsets():
    resnets = {**NARROW, "NUM_GROUPS": 2, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False}
    plain = _with_random_norms(build_backbone(_cfg(**resnets)))
    deformable = build_backbone(
        _cfg(**resnets, DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_MODULATED=False)
    )
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {key.split(".")[-2] for key in missing} == {"conv2_offset"}
    image = torch.randn(1, 3, 64, 96)
    features = deformable(image)
    torch.testing.assert_close(features, plain(image))
    sum(feature.square().mean() for feature in features.values()).backward()
    for module in deformable.modules():
        if isinstance(module, DeformBottleneckBlock):
            assert module.conv2_offset.weight.grad.isfinite().all()
            assert module.conv2_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 51}, r"depth must be one of \[18, 34, 50, 101, 152\], got 51"),
        ({"res5_dilation": 3}, "res5_dilation must be 1 or 2, got 3"),
        ({"deform_on_per_stage": (True,)}, r"one value for each of .*, got \[True\]"),
        (
            {
                "depth": 18,
                "res2_out_channels": 64,
                "deform_on_per_stage": (False, False, False, True),
            },
            "needs bottleneck blocks, which a ResNet of depth 18 does not have",
        ),
        ({"depth": 18}, "depth 18 needs res2_out_channels=64, got 256"),
        ({"depth": 34, "res2_out_channels": 64, "num_groups": 2}, "needs num_groups=1, got 2"),
        ({"depth": 34, "res2_out_channels": 64, "res5_dilation": 2}, "needs res5_dilation=1"),
    ],
)
def test_stages_that_cannot_be_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_resnet_stages(**kwargs)


@pytest.mark.parametrize("in_features", [[], ["res2", "res3"]])
def test_fpn_features_must_be_those_of_the_network(in_features):
    cfg = _cfg(**NARROW)
    cfg.MODEL.FPN.IN_FEATURES = in_features
    with pytest.raises(ValueError, match="must be among res3, res4, res5"):
        build_backbone(cfg)
