"""The yaml keys, held against the signatures, and parts of one's own by name."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, configurable
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    build_model,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from atss_d2.config import (
    add_atss_config,
    get_cfg,
)
from atss_d2.config.arguments import arguments_of
from atss_d2.modeling import (
    ATSS,
    ATSSHead,
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    ShiftedAnchorGenerator,
    TopKMatcher,
    TorchvisionBackbone,
    build_fpn_with_p6p7,
)
from atss_d2.modeling.backbones import LastLevelP6P7WithoutReLU
from atss_d2.modeling.box_coding import (
    PointDistances,
    TwoSidedBox2BoxTransform,
)
from atss_d2.modeling.build import BOX_CODERS
from atss_d2.modeling.criterion import CRITERION_REGISTRY, ATSSCriterion
from atss_d2.modeling.deform_conv import ModulatedDeformConvPack
from atss_d2.modeling.matchers import BACKGROUND, MATCHER_REGISTRY, DenseMatcher
from tools import write_yaml_keys

ROOT = Path(__file__).resolve().parents[2]

TOY_BACKBONE = "build_backbone_of_the_config_tests"


class OneConvPerLevel(Backbone):
    """Three levels, p3 to p5, of strides 8 to 32."""

    def __init__(self):
        super().__init__()
        self._out_features = ["p3", "p4", "p5"]
        self._out_feature_strides = {"p3": 8, "p4": 16, "p5": 32}
        self._out_feature_channels = dict.fromkeys(self._out_features, 64)
        for name, stride in self._out_feature_strides.items():
            self.add_module(name, nn.Conv2d(3, 64, kernel_size=stride, stride=stride))

    @property
    def size_divisibility(self):
        return 32

    def forward(self, x):
        return {name: getattr(self, name)(x) for name in self._out_features}


@pytest.fixture(autouse=True, scope="module")
def toy_backbone():
    """A registry entry for the time of this module."""

    def build(cfg, input_shape):
        return OneConvPerLevel()

    BACKBONE_REGISTRY._do_register(TOY_BACKBONE, build)
    yield
    del BACKBONE_REGISTRY._obj_map[TOY_BACKBONE]


def toy_cfg():
    """A small ATSS with every key of ours at its default."""
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ATSS"
    cfg.MODEL.BACKBONE.NAME = TOY_BACKBONE
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [128], [256]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.ATSS.HEAD.CONV_DIMS = (64,)
    return cfg


def flatten(node, prefix=""):
    """Dotted key -> value of a yacs tree."""
    values = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


# -------------------------------------------------------------------- signatures and cfg nodes


# ----------------------------------------------------------------------------- add_atss_config


def test_nothing_of_detectron2s_is_changed():
    theirs, ours = get_detectron2_cfg(), get_detectron2_cfg()
    add_atss_config(ours)
    theirs, ours = flatten(theirs), flatten(ours)
    added = ours.keys() - theirs.keys()
    assert {
        key for key in added if not key.startswith(("MODEL.ATSS.", "MODEL.TORCHVISION."))
    } == set()
    assert {key: ours[key] for key in theirs} == theirs
    # Nor the defaults that the next call of Detectron2's own get_cfg() gives.
    assert "ATSS" not in get_detectron2_cfg().MODEL


def test_two_cfgs_share_nothing():
    first, second = toy_cfg(), toy_cfg()
    first.MODEL.ATSS.HEAD.NORM = "BN"
    first.MODEL.ATSS.TEST_SCORE_THRESH = 0.9
    assert second.MODEL.ATSS.HEAD.NORM == "GN"
    assert second.MODEL.ATSS.TEST_SCORE_THRESH == 0.05


# Node -> what its keys are arguments of, and the arguments that come from elsewhere.
NODES = {
    "": (ATSS, "input_format vis_period criterion head_in_features"),
    "HEAD": (ATSSHead, "num_anchors num_box_values"),
    "FPN": (build_fpn_with_p6p7, "in_features out_channels norm fuse_type"),
    "ANCHOR_GENERATOR": (ShiftedAnchorGenerator, "offset"),
    "MATCHER": (ATSSMatcher, "num_anchors"),
    "IOU_MATCHER": (IoUMatcher, ""),
    "SCALE_RANGE_MATCHER": (ScaleRangeMatcher, "strides"),
    "CENTER_SAMPLING_MATCHER": (CenterSamplingMatcher, "strides"),
    "TOPK_MATCHER": (TopKMatcher, ""),
    "POINT_DISTANCES": (PointDistances, ""),
}
SHARED_BY_RULES = ("IGNORE_IOA_THRESH", "CENTER_EPSILON", "INSET")


@pytest.mark.parametrize("name", NODES)
def test_keys_and_defaults_are_those_of_the_signatures(name):
    function, elsewhere = NODES[name]
    cfg = add_keys()
    node = cfg.MODEL.ATSS[name] if name else cfg.MODEL.ATSS
    keys = {key: value for key, value in node.items() if not isinstance(value, CfgNode)}
    for key in ("NUM_CLASSES", "CATEGORIES", "BOX_CODER", "NAME", "HEAD_IN_FEATURES"):
        keys.pop(key, None)  # choices, and what belongs to the data
    defaults = {
        argument.upper(): parameter.default
        for argument, parameter in arguments_of(function).items()
        if parameter.default is not parameter.empty and argument not in elsewhere.split()
    }
    if name.endswith("_MATCHER"):
        shared = {key: defaults.pop(key) for key in SHARED_BY_RULES}
        assert shared == {key: cfg.MODEL.ATSS.MATCHER[key] for key in SHARED_BY_RULES}
    assert keys == defaults


def test_keys_of_the_torchvision_backbone_are_those_of_its_signature():
    defaults = {name: p.default for name, p in arguments_of(TorchvisionBackbone).items()}
    for key, value in add_keys().MODEL.TORCHVISION.items():
        assert defaults.pop(key.lower()) == value
    assert set(defaults) == {"out_features", "freeze_at"}  # Detectron2 has keys for them


def test_the_document_lists_the_keys():
    document = (ROOT / "docs" / "yaml_keys.md").read_text(encoding="utf-8")
    assert document == write_yaml_keys.document(), "run python tools/write_yaml_keys.py"


def add_keys() -> CfgNode:
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    return cfg


def matcher_effects(node, **values):
    """Entries of ``EFFECTS`` for the arguments of a matcher, which it keeps under their names."""
    return {
        f"{node}.{name.upper()}": (value, lambda m, name=name: getattr(m.matcher, name), value)
        for name, value in values.items()
    }


@CRITERION_REGISTRY.register()
class TwiceTheLoss(ATSSCriterion):
    """Losses of one's own, with an argument more."""

    def __init__(self, *, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def compute(self, predictions, targets):
        losses = super().compute(predictions, targets)
        return {name: self.factor * loss for name, loss in losses.items()}


@MATCHER_REGISTRY.register()
class StricterATSS(ATSSMatcher):
    """A subclass of a rule of ours."""

    def __init__(self, *, least_iou=0.1, **kwargs):
        super().__init__(**kwargs)
        self.least_iou = least_iou


@MATCHER_REGISTRY.register()
class NothingIsPositive(DenseMatcher):
    """A rule of one's own."""

    def __init__(self, *, topk=3, ignore_ioa_thresh=None):
        super().__init__(ignore_ioa_thresh=ignore_ioa_thresh)
        self.topk = topk

    def match(self, scene):
        return torch.full((scene.num_images, sum(map(len, scene.anchors))), BACKGROUND)


# Key of MODEL.ATSS -> (another value, what the built model then has).
EFFECTS = {
    "NUM_CLASSES": (7, lambda m: (m.num_classes, m.head.cls_score.out_channels), (7, 7)),
    "HEAD_IN_FEATURES": (["p3", "p4", "p5"], lambda m: m.head_in_features, ["p3", "p4", "p5"]),
    "FOCAL_LOSS_ALPHA": (0.5, lambda m: m.criterion.focal_loss_alpha, 0.5),
    "FOCAL_LOSS_GAMMA": (1.5, lambda m: m.criterion.focal_loss_gamma, 1.5),
    "BOX_REG_LOSS_TYPE": ("smooth_l1", lambda m: m.criterion.box_reg_loss_type, "smooth_l1"),
    "SMOOTH_L1_BETA": (0.5, lambda m: m.criterion.smooth_l1_beta, 0.5),
    "BOX_REG_LOSS_WEIGHT": (3.0, lambda m: m.criterion.box_reg_loss_weight, 3.0),
    "CENTERNESS_WEIGHTED_BOX_LOSS": (
        False,
        lambda m: m.criterion.centerness_weighted_box_loss,
        False,
    ),
    "CENTERNESS_LOSS_WEIGHT": (0.5, lambda m: m.criterion.centerness_loss_weight, 0.5),
    "CENTERNESS_INSET": (0.5, lambda m: m.criterion.centerness_inset, 0.5),
    "FLOOR_PER_IMAGE": (True, lambda m: m.criterion.floor_per_image, True),
    "TEST_SCORE_THRESH": (0.3, lambda m: m.test_score_thresh, 0.3),
    "TEST_TOPK_CANDIDATES": (10, lambda m: m.test_topk_candidates, 10),
    "TEST_NMS_THRESH": (0.4, lambda m: m.test_nms_thresh, 0.4),
    "MAX_DETECTIONS_PER_IMAGE": (5, lambda m: m.max_detections_per_image, 5),
    "TEST_SCORE_TYPE": ("product", lambda m: m.test_score_type, "product"),
    "TEST_RANK_BY": ("class_score", lambda m: m.test_rank_by, "class_score"),
    "HEAD.CONV_DIMS": ([64, 32], lambda m: m.head.cls_score.in_channels, 32),
    "HEAD.NORM": ("BN", lambda m: type(m.head.cls_subnet[1]), nn.BatchNorm2d),
    "HEAD.CONV_BIAS": (False, lambda m: m.head.cls_subnet[0].bias, None),
    "HEAD.DEFORM_LAST_CONV": (True, lambda m: type(m.head.cls_subnet[0]), ModulatedDeformConvPack),
    "HEAD.PRIOR_PROB": (
        0.5,
        lambda m: m.head.cls_score.bias.sigmoid().mean().item(),
        pytest.approx(0.5),
    ),
    "HEAD.WITH_CENTERNESS": (False, lambda m: m.head.ctrness, None),
    "HEAD.WITH_SCALES": (False, lambda m: len(list(m.head.scales.parameters())), 0),
    "HEAD.BBOX_PRED_BIAS": (4.0, lambda m: m.head.bbox_pred.bias.mean().item(), 4.0),
    "FPN.P7_RELU": (False, lambda m: type(m.backbone.top_block), LastLevelP6P7WithoutReLU),
    "ANCHOR_GENERATOR.CENTER_SHIFT": (0.5, lambda m: m.anchor_generator.center_shift, 0.5),
    "MATCHER.NAME": ("IoUMatcher", lambda m: type(m.matcher), IoUMatcher),
    "CRITERION.NAME": ("TwiceTheLoss", lambda m: type(m.criterion), TwiceTheLoss),
    **matcher_effects(
        "MATCHER",
        topk=5,
        metric="giou",
        std_factor=0.5,
        unbiased_std=False,
        center_epsilon=0.1,
        inset=0.5,
        min_positives=1,
        ignore_ioa_thresh=0.5,
    ),
    **matcher_effects(
        "IOU_MATCHER",
        thresholds=(0.3, 0.6),
        allow_low_quality_matches=False,
        center_in_gt=True,
    ),
    **matcher_effects(
        "SCALE_RANGE_MATCHER",
        range_factor=4.0,
    ),
    **matcher_effects(
        "CENTER_SAMPLING_MATCHER",
        radius=2.5,
        range_factor=4.0,
    ),
    "CENTER_SAMPLING_MATCHER.TOPK": (5, lambda m: m.matcher.topk, 5),
    **matcher_effects("TOPK_MATCHER", topk=5),
    "BOX_CODER": ("PointDistances", lambda m: type(m.box2box_transform), PointDistances),
    "POINT_DISTANCES.ANCHOR_SCALE": (4.0, lambda m: m.box2box_transform.anchor_scale, 4.0),
    "POINT_DISTANCES.INSET": (0.5, lambda m: m.box2box_transform.inset, 0.5),
    "BOX2BOX_TRANSFORM.WEIGHTS": (
        [1.0, 2.0, 3.0, 4.0],
        lambda m: m.box2box_transform.weights,
        (1.0, 2.0, 3.0, 4.0),
    ),
    "BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES": (
        True,
        lambda m: type(m.box2box_transform),
        TwoSidedBox2BoxTransform,
    ),
}


def test_the_effect_of_every_key_is_tested():
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    assert set(flatten(cfg.MODEL.ATSS)) - {"CATEGORIES"} == set(EFFECTS)


@pytest.mark.parametrize("key", EFFECTS)
def test_every_key_has_an_effect(key):
    value, read, expected = EFFECTS[key]
    cfg = toy_cfg()
    # The node of a part matters when that part is chosen.
    for name, (node, _) in BOX_CODERS.items():
        if key.startswith(f"{node}."):
            cfg.MODEL.ATSS.BOX_CODER = name
    if (node := key.partition(".")[0]).endswith("MATCHER"):
        cfg.MODEL.ATSS.MATCHER.NAME = NODES[node][0].__name__
    if key.startswith("ANCHOR_GENERATOR."):
        cfg.MODEL.ANCHOR_GENERATOR.NAME = "ShiftedAnchorGenerator"
    if key.startswith("FPN."):
        cfg.MODEL.BACKBONE.NAME = "build_torchvision_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [128], [256], [512], [1024]]
    if key == "CENTER_SAMPLING_MATCHER.TOPK":
        cfg.MODEL.ATSS.CENTER_SAMPLING_MATCHER.RADIUS = None
        cfg.MODEL.ATSS.CENTER_SAMPLING_MATCHER.TOPK = 9
    if key != "HEAD_IN_FEATURES":  # None stands for all features
        assert read(build_model(cfg)) != expected
    cfg.merge_from_list([f"MODEL.ATSS.{key}", value])
    model = build_model(cfg)
    assert read(model) == expected
    assert type(model) is ATSS


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("MATCHER.NAME", "ATSSMatcher, .*, TopKMatcher"),
        ("CRITERION.NAME", "ATSSCriterion"),
        ("BOX_CODER", "Box2BoxTransform, PointDistances"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(key, known):
    cfg = toy_cfg()
    cfg.merge_from_list([f"MODEL.ATSS.{key}", "Nothing"])
    with pytest.raises(ValueError, match=f"MODEL.ATSS.{key} must be one of .*{known}.*'Nothing'"):
        build_model(cfg)


def test_strides_of_the_rules_follow_the_backbone():
    cfg = toy_cfg()
    cfg.MODEL.ATSS.MATCHER.NAME = "ScaleRangeMatcher"
    cfg.MODEL.ATSS.HEAD_IN_FEATURES = ["p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128], [256]]
    assert list(build_model(cfg).matcher.strides) == [16, 32]


def test_fewer_features_than_the_backbone_has():
    cfg = toy_cfg()
    cfg.merge_from_list(["MODEL.ATSS.HEAD_IN_FEATURES", "['p4', 'p5']"])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128], [256]]
    model = build_model(cfg)
    assert model.head_in_features == ["p4", "p5"]
    assert model.anchor_generator.strides == [16, 32]
    assert len(model.head.scales) == 2


def test_anchors_per_location_follow_the_anchor_generator():
    cfg = toy_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    model = build_model(cfg)
    assert model.head.num_anchors == model.matcher.num_anchors == 3


def test_detectron2s_keys_reach_the_model():
    cfg = toy_cfg()
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    cfg.MODEL.PIXEL_STD = [4.0, 5.0, 6.0]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.INPUT.FORMAT = "RGB"
    model = build_model(cfg)
    assert model.pixel_mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert model.pixel_std.flatten().tolist() == [4.0, 5.0, 6.0]
    assert model.anchor_generator.offset == 0.5
    assert model.input_format == "RGB"


def test_cfg_and_constructor_build_the_same():
    """No value comes from anywhere but the signatures and the keys."""
    cfg = toy_cfg()
    torch.manual_seed(0)
    from_cfg = build_model(cfg)
    torch.manual_seed(0)
    by_hand = ATSS(
        backbone=OneConvPerLevel(),
        head=ATSSHead(input_shape=[ShapeSpec(channels=64)] * 3, num_classes=80, conv_dims=(64,)),
        anchor_generator=copy.deepcopy(from_cfg.anchor_generator),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        matcher=ATSSMatcher(),
        num_classes=80,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    ours, theirs = from_cfg.state_dict(), by_hand.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    public = {k: v for k, v in vars(by_hand).items() if isinstance(v, (int, float, str, list))}
    assert len(public) > 10
    assert {k: getattr(from_cfg, k) for k in public} == public


def test_a_saved_cfg_builds_again(tmp_path):
    cfg = toy_cfg()
    cfg.MODEL.ATSS.MATCHER.TOPK = 5
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    loaded = get_detectron2_cfg()
    add_atss_config(loaded)
    loaded.merge_from_file(str(path))
    assert flatten(loaded.MODEL.ATSS) == flatten(cfg.MODEL.ATSS)
    assert build_model(loaded).matcher.topk == 5


def test_get_cfg_is_the_paper_s_recipe():
    cfg = get_cfg()
    assert cfg.MODEL.META_ARCHITECTURE == "ATSS"
    assert cfg.MODEL.RESNETS.DEPTH == 50
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[64], [128], [256], [512], [1024]]
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[1.0]]
    assert cfg.MODEL.ANCHOR_GENERATOR.OFFSET == 0.5
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.01)
    assert flatten(cfg.MODEL.ATSS) == flatten(add_keys().MODEL.ATSS)


# ------------------------------------------------------------------------ parts of one's own


def test_a_subclass_of_a_rule_by_name():
    cfg = toy_cfg()
    cfg.MODEL.ATSS.MATCHER.update(NAME="StricterATSS", TOPK=5, INSET=0.5, IGNORE_IOA_THRESH=0.4)
    matcher = build_model(cfg).matcher
    assert type(matcher) is StricterATSS
    assert (matcher.topk, matcher.inset, matcher.ignore_ioa_thresh) == (5, 0.5, 0.4)
    assert matcher.least_iou == 0.1
    cfg.MODEL.ATSS.STRICTER_ATSS = CfgNode({"LEAST_IOU": 0.3, "TOPK": 7})
    cfg.merge_from_list(["MODEL.ATSS.STRICTER_ATSS.LEAST_IOU", 0.2])
    matcher = build_model(cfg).matcher
    assert (matcher.topk, matcher.least_iou) == (7, 0.2)


def test_a_rule_of_ones_own_by_name():
    cfg = toy_cfg()
    cfg.MODEL.ATSS.MATCHER.update(NAME="NothingIsPositive", IGNORE_IOA_THRESH=0.4)
    matcher = build_model(cfg).matcher
    assert (type(matcher), matcher.topk) == (NothingIsPositive, 3)  # not that of ATSSMatcher
    assert matcher.ignore_ioa_thresh == 0.4
    cfg.MODEL.ATSS.NOTHING_IS_POSITIVE = CfgNode({"TOPK": 4})
    assert build_model(cfg).matcher.topk == 4


def test_losses_of_ones_own_by_name():
    cfg = toy_cfg()
    cfg.MODEL.ATSS.CRITERION.NAME = "TwiceTheLoss"
    cfg.MODEL.ATSS.BOX_REG_LOSS_TYPE = "diou"
    cfg.MODEL.ATSS.TWICE_THE_LOSS = CfgNode({"FACTOR": 3.0})
    criterion = build_model(cfg).criterion
    assert (type(criterion), criterion.box_reg_loss_type, criterion.factor) == (
        TwiceTheLoss,
        "diou",
        3.0,
    )


@META_ARCH_REGISTRY.register()
class ATSSWithMore(ATSS):
    @configurable
    def __init__(self, *, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature


@META_ARCH_REGISTRY.register()
class ATSSWithFewer(ATSS):
    @configurable
    def __init__(
        self,
        *,
        backbone,
        head,
        anchor_generator,
        box2box_transform,
        matcher,
        num_classes,
        pixel_mean,
        pixel_std,
        temperature=1.0,
    ):
        super().__init__(
            backbone=backbone,
            head=head,
            anchor_generator=anchor_generator,
            box2box_transform=box2box_transform,
            matcher=matcher,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.temperature = temperature


@pytest.mark.parametrize("name", ["ATSSWithMore", "ATSSWithFewer"])
def test_subclasses_of_the_detector(name):
    cfg = toy_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.ATSS.TEST_NMS_THRESH = 0.4
    model = build_model(cfg)
    assert model.temperature == 1.0
    assert model.test_nms_thresh == (0.4 if name == "ATSSWithMore" else 0.6)
    cfg.MODEL.ATSS.TEMPERATURE = 2.0
    assert build_model(cfg).temperature == 2.0
