"""The yaml keys, held against the signatures, and parts of one's own by name."""

import functools
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, configurable
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    build_model,
)
from torch import nn

from atss_d2.config import (
    add_atss_config,
)
from atss_d2.config.arguments import arguments_of
from atss_d2.modeling import (
    ATSS,
    ATSSHead,
    ATSSMatcher,
    CenterSamplingMatcher,
    DDODCriterion,
    DDODMatcher,
    DyHead,
    DynamicSoftLabelMatcher,
    IoUBranchCriterion,
    IoUMatcher,
    PAAMatcher,
    ScaleRangeMatcher,
    ShiftedAnchorGenerator,
    SimOTAMatcher,
    SoftTargetCriterion,
    TaskAlignedCriterion,
    TaskAlignedMatcher,
    TOODHead,
    TopKMatcher,
    TorchvisionBackbone,
    VFNetCriterion,
    VFNetHead,
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
from atss_d2.modeling.head import HEAD_REGISTRY
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


def add_keys() -> CfgNode:
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    return cfg


def toy_cfg():
    """A small ATSS with every key of ours at its default."""
    cfg = add_keys()
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


SHARED_BY_RULES = ("IGNORE_IOA_THRESH", "CENTER_EPSILON", "INSET")
# Node -> what its keys are arguments of, and the arguments that come from elsewhere.
NODES = {
    "": (ATSS, "input_format vis_period criterion head_in_features"),
    "HEAD": (ATSSHead, "num_anchors num_box_values"),
    "DY_HEAD": (DyHead, "backbone in_features num_blocks"),  # NUM_BLOCKS is 0 by default
    "FPN": (build_fpn_with_p6p7, "in_features out_channels norm fuse_type"),
    "ANCHOR_GENERATOR": (ShiftedAnchorGenerator, "offset"),
    "MATCHER": (ATSSMatcher, "num_anchors"),
    "IOU_MATCHER": (IoUMatcher, ""),
    "SCALE_RANGE_MATCHER": (ScaleRangeMatcher, "strides"),
    "CENTER_SAMPLING_MATCHER": (CenterSamplingMatcher, "strides"),
    "TOPK_MATCHER": (TopKMatcher, ""),
    "TASK_ALIGNED_MATCHER": (TaskAlignedMatcher, "warm_up"),
    "SIM_OTA_MATCHER": (SimOTAMatcher, "strides"),
    "DYNAMIC_SOFT_LABEL_MATCHER": (DynamicSoftLabelMatcher, "strides"),
    "PAA_MATCHER": (PAAMatcher, ""),
    "POINT_DISTANCES": (PointDistances, ""),
    "TOOD_HEAD": (TOODHead, "num_anchors num_box_values norm prior_prob anchor_offset"),
    "TASK_ALIGNED_CRITERION": (TaskAlignedCriterion, " ".join(arguments_of(ATSSCriterion))),
    "DDOD_MATCHER": (DDODMatcher, "num_anchors topk metric std_factor unbiased_std min_positives"),
    "DDOD_CRITERION": (
        *(DDODCriterion, " ".join({*arguments_of(ATSSCriterion), "quality_loss_weight"})),
    ),
    "IOU_BRANCH_CRITERION": (IoUBranchCriterion, " ".join(arguments_of(ATSSCriterion))),
    "SOFT_TARGET_CRITERION": (
        SoftTargetCriterion,
        "box_reg_loss_type box_reg_loss_weight floor_per_image centerness_inset",
    ),
    "VF_NET_HEAD": (VFNetHead, "num_anchors num_box_values norm deform_last_conv prior_prob"),
    "VF_NET_CRITERION": (VFNetCriterion, "box_reg_loss_type box_reg_loss_weight"),
}


@pytest.mark.parametrize("name", NODES)
def test_keys_and_defaults_are_those_of_the_signatures(name):
    function, elsewhere = NODES[name]
    cfg = add_keys()
    node = cfg.MODEL.ATSS[name] if name else cfg.MODEL.ATSS
    keys = {key: value for key, value in node.items() if not isinstance(value, CfgNode)}
    for key in ("NUM_CLASSES", "CATEGORIES", "CHECK_DATA", "BOX_CODER", "NAME", "HEAD_IN_FEATURES"):
        keys.pop(key, None)  # choices, and what belongs to the data
    keys.pop("NUM_BLOCKS", None)
    defaults = {
        argument.upper(): parameter.default
        for argument, parameter in arguments_of(function).items()
        if parameter.default is not parameter.empty and argument not in elsewhere.split()
    }
    if name.endswith("_MATCHER"):
        shared = {key: defaults.pop(key) for key in SHARED_BY_RULES if key in defaults}
        assert shared == {key: cfg.MODEL.ATSS.MATCHER[key] for key in shared}
        assert "IGNORE_IOA_THRESH" in shared
    assert keys == defaults


def test_keys_of_the_torchvision_backbone_are_those_of_its_signature():
    defaults = {name: p.default for name, p in arguments_of(TorchvisionBackbone).items()}
    for key, value in add_keys().MODEL.TORCHVISION.items():
        assert defaults.pop(key.lower()) == value
    assert set(defaults) == {"out_features", "freeze_at"}  # Detectron2 has keys for them


def test_the_document_lists_the_keys():
    document = (ROOT / "docs" / "yaml_keys.md").read_text(encoding="utf-8")
    assert document == write_yaml_keys.document(), "run python tools/write_yaml_keys.py"


@HEAD_REGISTRY.register()
class HeadOfOnesOwn(ATSSHead):
    pass


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


# Other values of keys whose values are not plain numbers.
VALUES = {
    "HEAD_IN_FEATURES": ["p3", "p4", "p5"],
    "BOX_REG_LOSS_TYPE": "smooth_l1",
    "TEST_SCORE_TYPE": "product",
    "TEST_RANK_BY": "class_score",
    "TEST_THRESH_ON": "score",
    "SCORE_VOTING": 0.025,
    "MATCHER.METRIC": "giou",
    "MATCHER.IGNORE_IOA_THRESH": 0.5,
    "IOU_MATCHER.THRESHOLDS": (0.3, 0.6),
    "DDOD_MATCHER.BOX_ALPHA": 0.3,
    "CENTER_SAMPLING_MATCHER.TOPK": 5,
    "BOX2BOX_TRANSFORM.WEIGHTS": (1.0, 2.0, 3.0, 4.0),
}
PARTS = {"ANCHOR_GENERATOR": "anchor_generator", "DDOD_CRITERION": "criterion"}
PARTS |= {"VF_NET_HEAD": "head", "VF_NET_CRITERION": "criterion"}
PARTS |= dict.fromkeys(
    ("POINT_DISTANCES", "DISTANCE_DISTRIBUTIONS", "BOX2BOX_TRANSFORM"), "box2box_transform"
)


def attribute(model, key):
    """The value of a key in the part that has it."""
    node, _, name = key.rpartition(".")
    if node:
        part = getattr(model, PARTS.get(node, "matcher"))
    else:
        part = model if hasattr(model, name.lower()) else model.criterion
    return getattr(part, name.lower())


# Keys that are not attributes of the model -> (another value, what the built model then has).
EFFECTS = {
    "NUM_CLASSES": (7, lambda m: (m.num_classes, m.head.cls_score.out_channels), (7, 7)),
    "HEAD.NAME": ("HeadOfOnesOwn", lambda m: type(m.head), HeadOfOnesOwn),
    "HEAD.CONV_DIMS": ([64, 32], lambda m: m.head.cls_score.in_channels, 32),
    "HEAD.NORM": ("BN", lambda m: type(m.head.cls_subnet[1]), nn.BatchNorm2d),
    "HEAD.CONV_BIAS": (False, lambda m: m.head.cls_subnet[0].bias, None),
    "HEAD.DEFORM_FIRST_CONV": (True, lambda m: type(m.head.cls_subnet[0]), ModulatedDeformConvPack),
    "HEAD.DEFORM_LAST_CONV": (True, lambda m: type(m.head.cls_subnet[0]), ModulatedDeformConvPack),
    "HEAD.PRIOR_PROB": (
        *(0.5, lambda m: m.head.cls_score.bias.sigmoid().mean().item(), pytest.approx(0.5)),
    ),
    "HEAD.WITH_CENTERNESS": (False, lambda m: m.head.ctrness, None),
    "HEAD.WITH_SCALES": (False, lambda m: len(list(m.head.scales.parameters())), 0),
    "HEAD.BBOX_PRED_BIAS": (4.0, lambda m: m.head.bbox_pred.bias.mean().item(), 4.0),
    "TOOD_HEAD.CONV_DIMS": ([64, 64], lambda m: len(m.head.shared_convs), 2),
    "HEAD.PRED_KERNEL_SIZE": (1, lambda m: m.head.cls_score.kernel_size, (1, 1)),
    "VF_NET_HEAD.CONV_DIMS": ([32], lambda m: m.head.cls_score.in_channels, 32),
    "VF_NET_HEAD.CONV_BIAS": (True, lambda m: m.head.first_subnet[0].bias is not None, True),
    "FPN.P7_RELU": (False, lambda m: type(m.backbone.top_block), LastLevelP6P7WithoutReLU),
    "DY_HEAD.NUM_BLOCKS": (2, lambda m: len(getattr(m.backbone, "blocks", ())), 2),
    "DY_HEAD.CHANNELS": (32, lambda m: m.head.cls_subnet[0].in_channels, 32),
    "DY_HEAD.OFFSETS_OF_UPPER_LEVEL": (
        *("flattened", lambda m: m.backbone.blocks[0].reads_flattened, True),
    ),
    "DY_HEAD.ZERO_INIT_OFFSETS": (
        *(True, lambda m: m.backbone.blocks[0].offset.weight.any().item(), False),
    ),
    "DY_HEAD.NORM_GROUPS": (8, lambda m: m.backbone.blocks[0].same.norm.num_groups, 8),
    "DY_HEAD.SIZE_DIVISIBILITY": (64, lambda m: m.backbone.size_divisibility, 64),
    "MATCHER.NAME": ("IoUMatcher", lambda m: type(m.matcher), IoUMatcher),
    "CRITERION.NAME": ("TwiceTheLoss", lambda m: type(m.criterion), TwiceTheLoss),
    "IOU_BRANCH_CRITERION.QUALITY_WEIGHTED_BOX_LOSS": (
        *(True, lambda m: m.criterion.centerness_weighted_box_loss, True),
    ),
    "IOU_BRANCH_CRITERION.QUALITY_LOSS_WEIGHT": (
        *(0.5, lambda m: m.criterion.centerness_loss_weight, 0.5),
    ),
    "SOFT_TARGET_CRITERION.CLS_LOSS": (
        *("varifocal", lambda m: m.criterion.cls_loss, "varifocal"),
    ),
    "SOFT_TARGET_CRITERION.CLS_LOSS_GAMMA": (
        *(1.0, lambda m: m.criterion._cls_loss.keywords, {"gamma": 1.0}),
    ),
    "SOFT_TARGET_CRITERION.VARIFOCAL_ALPHA": (
        *(0.5, lambda m: m.criterion._cls_loss.keywords, {"alpha": 0.5}),
    ),
    "SOFT_TARGET_CRITERION.BOX_WEIGHTS": ("none", lambda m: m.criterion.box_weights, "none"),
    "SOFT_TARGET_CRITERION.DISTRIBUTION_LOSS_WEIGHT": (
        *(0.5, lambda m: m.criterion.distribution_loss_weight, 0.5),
    ),
    "SOFT_TARGET_CRITERION.NORMALIZED_BY": (
        *("quality", lambda m: m.criterion.normalized_by_name, "quality"),
    ),
    "TASK_ALIGNED_CRITERION.CLS_LOSS_GAMMA": (1.5, lambda m: m.criterion.cls_loss_gamma, 1.5),
    "IOU_BRANCH_CRITERION.FLOOR_BY_IMAGES": (True, lambda m: m.criterion.floor_by_images, True),
    "BOX_CODER": ("PointDistances", lambda m: type(m.box2box_transform), PointDistances),
    "BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES": (
        *(True, lambda m: type(m.box2box_transform), TwoSidedBox2BoxTransform),
    ),
}


def make_task_aligned(cfg):
    """Chooses TOOD's parts."""
    cfg.MODEL.ATSS.HEAD.NAME = "TOODHead"
    cfg.MODEL.ATSS.BOX_CODER = "PointDistances"
    cfg.MODEL.ATSS.POINT_DISTANCES.CLAMP = False
    cfg.MODEL.ATSS.MATCHER.NAME = "TaskAlignedMatcher"
    cfg.MODEL.ATSS.CRITERION.NAME = "TaskAlignedCriterion"


def other_value(key, value):
    if key in VALUES:
        return VALUES[key]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.25


DEFAULTS = flatten(add_keys().MODEL.ATSS)
# Read by the trainer, see tests/engine/, and by R-CNNs, see tests/integration/test_rpn.py; the
# categories are saved with the model.
NOT_OF_THE_MODEL = {key for key in DEFAULTS if key.startswith(("TRAIN.", "RPN."))}
NOT_OF_THE_MODEL |= {"CATEGORIES", "CHECK_DATA"}
# Follows from other keys, see test_the_levels_of_ddod.
NOT_OF_THE_MODEL |= {"DDOD_CRITERION.NUM_LEVELS"}


@pytest.mark.parametrize("key", sorted(DEFAULTS.keys() - NOT_OF_THE_MODEL))
def test_every_key_has_an_effect(key):
    if key in EFFECTS:
        value, read, expected = EFFECTS[key]
    else:
        value = expected = other_value(key, DEFAULTS[key])
        read = functools.partial(attribute, key=key)
    cfg = toy_cfg()
    # The node of a part matters when that part is chosen.
    for name, (node, _) in BOX_CODERS.items():
        if key.startswith(f"{node}."):
            cfg.MODEL.ATSS.BOX_CODER = name
    if (node := key.partition(".")[0]).endswith("MATCHER"):
        cfg.MODEL.ATSS.MATCHER.NAME = NODES[node][0].__name__
    if key.startswith(("TASK_ALIGNED_", "TOOD_HEAD.")):
        make_task_aligned(cfg)
    if node.endswith("_CRITERION"):
        cfg.MODEL.ATSS.CRITERION.NAME = NODES[node][0].__name__
    if node == "DDOD_CRITERION":
        cfg.MODEL.ATSS.DDOD_CRITERION.NUM_LEVELS = 3
    if node == "SOFT_TARGET_CRITERION":
        cfg.MODEL.ATSS.HEAD.WITH_CENTERNESS = False
    if key == "SOFT_TARGET_CRITERION.VARIFOCAL_ALPHA":
        cfg.MODEL.ATSS.SOFT_TARGET_CRITERION.CLS_LOSS = "varifocal"
    if node.startswith("VF_NET_"):
        cfg.MODEL.ATSS.BOX_CODER = "PointDistances"
        cfg.MODEL.ATSS.HEAD.NAME, cfg.MODEL.ATSS.CRITERION.NAME = "VFNetHead", "VFNetCriterion"
    if node == "DY_HEAD" and key != "DY_HEAD.NUM_BLOCKS":
        cfg.MODEL.ATSS.DY_HEAD.NUM_BLOCKS = 1
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
    if key == "DISTANCE_DISTRIBUTIONS.ANCHOR_SCALE":  # must fit the anchors
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[value * stride] for stride in (8, 16, 32)]
    cfg.merge_from_list([f"MODEL.ATSS.{key}", value])
    model = build_model(cfg)
    assert read(model) == expected
    assert type(model) is ATSS


def test_the_levels_of_ddod():
    cfg = toy_cfg()
    cfg.MODEL.ATSS.HEAD_IN_FEATURES = ["p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128], [256]]
    cfg.MODEL.ATSS.CRITERION.NAME = "DDODCriterion"
    with pytest.raises(ValueError, match=r"MODEL\.ATSS\.DDOD_CRITERION\.NUM_LEVELS in yaml"):
        build_model(cfg)
    cfg.MODEL.ATSS.DDOD_CRITERION.NUM_LEVELS = 2
    assert build_model(cfg).criterion.num_positives.shape == (2, 2)


def test_parts_follow_each_other():
    """Features, strides of a rule, anchors per location, and Detectron2's keys."""
    cfg = toy_cfg()
    cfg.MODEL.ATSS.MATCHER.NAME = "ScaleRangeMatcher"
    cfg.MODEL.ATSS.HEAD_IN_FEATURES = ["p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128], [256]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    cfg.INPUT.FORMAT = "RGB"
    cfg.VIS_PERIOD = 20
    model = build_model(cfg)
    assert list(model.matcher.strides) == model.anchor_generator.strides == [16, 32]
    assert len(model.head.scales) == 2
    assert model.anchor_generator.offset == 0.5
    assert model.pixel_mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert model.pixel_std.flatten().tolist() == [4.0, 5.0, 6.0]
    assert (model.input_format, model.vis_period) == ("RGB", 20)
    cfg = toy_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    model = build_model(cfg)
    assert model.head.num_anchors == model.matcher.num_anchors == 3


def test_the_parts_of_tood_by_name():
    """With the offset of the anchors, and the rule of ATSS in the warm-up."""
    cfg = toy_cfg()
    make_task_aligned(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.MODEL.ATSS.HEAD.NORM = "BN"
    cfg.MODEL.ATSS.MATCHER.update(CENTER_EPSILON=0.1, IGNORE_IOA_THRESH=0.4, TOPK=7)
    cfg.MODEL.ATSS.FOCAL_LOSS_ALPHA, cfg.MODEL.ATSS.BOX_REG_LOSS_TYPE = 0.5, "diou"
    model = build_model(cfg)
    assert model.matcher.warm_up is None
    assert (model.matcher.topk, model.matcher.ignore_ioa_thresh) == (13, 0.4)
    cfg.MODEL.ATSS.TASK_ALIGNED_MATCHER.WARM_UP_ITERATIONS = 20
    model = build_model(cfg)
    assert (type(model.head), type(model.criterion)) == (TOODHead, TaskAlignedCriterion)
    assert model.head.anchor_offset == 0.5
    assert (model.matcher.warm_up_iterations, model.matcher.center_epsilon) == (20, 0.1)
    assert type(model.matcher.warm_up) is ATSSMatcher
    assert (model.matcher.warm_up.topk, model.matcher.warm_up.center_epsilon) == (7, 0.1)
    criterion = model.criterion
    assert (criterion.focal_loss_alpha, criterion.box_reg_loss_type) == (0.5, "diou")
    cfg.MODEL.ATSS.POINT_DISTANCES.CLAMP = True
    with pytest.raises(ValueError, match=r"set box2box_transform to PointDistances\(clamp=False"):
        build_model(cfg)


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
