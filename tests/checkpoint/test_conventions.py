"""Conventions: what they set in configs of both kinds, and what a built model then is."""

import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from omegaconf import OmegaConf

from atss_d2 import get_cfg, get_config
from atss_d2.checkpoint import CONVENTIONS, apply_convention, convention_differences
from atss_d2.config import load_config
from atss_d2.modeling import CenterSamplingMatcher, ShiftedAnchorGenerator, TopKMatcher
from atss_d2.modeling.backbones import LastLevelP6P7, LastLevelP6P7WithoutReLU
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion.positives import Positives
from tests import reference, toy
from tests.detectron2_models import Recorder

published = reference.published()


def r_50(convention):
    return apply_convention(get_config("coco/atss_R_50_FPN_1x"), convention)


@pytest.mark.parametrize(
    ("convention", "p7", "strides", "pixel_mean", "pixel_std", "input_format"),
    [
        ("authors", LastLevelP6P7, [2, 1], [102.9801, 115.9465, 122.7717], [1, 1, 1], "BGR"),
        (
            *("mmdet", LastLevelP6P7WithoutReLU, [1, 2]),
            *([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], "RGB"),
        ),
    ],
)
def test_what_published_numbers_do_not_show(
    convention, p7, strides, pixel_mean, pixel_std, input_format
):
    cfg = r_50(convention)
    model = instantiate(cfg.model)
    assert convention_differences(model, convention) == []
    assert type(model.backbone.top_block) is p7
    block = model.backbone.bottom_up.res3[0]
    assert [block.conv1.stride[0], block.conv2.stride[0]] == strides
    assert model.pixel_mean.flatten().tolist() == pytest.approx(pixel_mean)
    assert model.pixel_std.flatten().tolist() == pytest.approx(pixel_std)
    assert model.input_format == cfg.dataloader.test.mapper.image_format == input_format


def test_a_box_of_mmdetection_is_never_a_thousandth_as_wide_as_its_anchor():
    decoded = instantiate(r_50("mmdet").model.box2box_transform).apply_deltas(
        torch.tensor([[0.0, 0, -40, 40]]), torch.tensor([[0.0, 0, 1000, 1000]])
    )
    torch.testing.assert_close(decoded, torch.tensor([[492.0, 500 - 31250, 508, 500 + 31250]]))


@pytest.mark.parametrize(
    ("convention", "deform", "groups"),
    [("authors", False, 1), ("authors", True, 32), ("mmdet", True, 1)],
)
def test_yaml_builds_what_a_lazy_config_builds(convention, deform, groups):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, deform, deform]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    cfg.MODEL.ATSS.NUM_CLASSES = 7
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(apply_convention(cfg, convention))
    assert convention_differences(model, convention) == []
    lazy = get_config("coco/atss_R_50_FPN_1x").model
    lazy.num_classes = 7
    lazy.backbone.bottom_up.stages.update(
        num_groups=groups, width_per_group=4, deform_on_per_stage=[False, False, deform, deform]
    )
    other = instantiate(apply_convention(lazy, convention))  # the node of the model
    assert convention_differences(other, convention) == []
    assert str(model.backbone) == str(other.backbone)
    assert str(model.head) == str(other.head)
    assert model.matcher.inset == other.matcher.inset
    assert model.criterion.centerness_inset == other.criterion.centerness_inset
    assert model.criterion.floor_per_image == other.criterion.floor_per_image
    assert type(model.box2box_transform) is type(other.box2box_transform)
    features = [torch.zeros(1, 1, side, side + 1) for side in (9, 5, 3, 2, 1)]
    for ours, theirs in zip(model.anchor_generator(features), other.anchor_generator(features)):
        assert torch.equal(ours.tensor, theirs.tensor)


# What chooses a detector in yaml, below MODEL.ATSS.
IN_YAML = {
    "gfl": {
        "BOX_CODER": "DistanceDistributions",
        "DISTANCE_DISTRIBUTIONS.ANCHOR_SCALE": 4.0,  # of the toy's anchors
        "CRITERION.NAME": "SoftTargetCriterion",
        "HEAD.WITH_CENTERNESS": False,
    },
    "paa": {"MATCHER.NAME": "PAAMatcher", "CRITERION.NAME": "IoUBranchCriterion"},
    "ddod": {
        "MATCHER.NAME": "DDODMatcher",
        "CRITERION.NAME": "DDODCriterion",
        "DDOD_CRITERION.NUM_LEVELS": 2,
    },
    "vfnet": {
        "BOX_CODER": "PointDistances",
        "POINT_DISTANCES.ANCHOR_SCALE": 4.0,
        "HEAD.NAME": "VFNetHead",
        "CRITERION.NAME": "VFNetCriterion",
    },
    "tood": {
        "BOX_CODER": "PointDistances",
        "POINT_DISTANCES.ANCHOR_SCALE": 4.0,
        "POINT_DISTANCES.CLAMP": False,
        "HEAD.NAME": "TOODHead",
        "MATCHER.NAME": "TaskAlignedMatcher",
        "CRITERION.NAME": "TaskAlignedCriterion",
    },
    "simota": {
        "MATCHER.NAME": "SimOTAMatcher",
        "CRITERION.NAME": "SoftTargetCriterion",
        "SOFT_TARGET_CRITERION.NORMALIZED_BY": "quality",
        "HEAD.WITH_CENTERNESS": False,
    },
    "iou": {"CRITERION.NAME": "IoUBranchCriterion"},
}


def yaml_of(detector, folder):
    (folder / "toy.yaml").write_text(toy.yaml_config(folder))
    cfg = load_config(folder / "toy.yaml")
    cfg.MODEL.DEVICE = "cpu"
    for key, value in IN_YAML[detector].items():
        cfg.merge_from_list([f"MODEL.ATSS.{key}", value])
    return cfg


@pytest.mark.parametrize("detector", IN_YAML)
def test_yaml_of_other_detectors(detector, tmp_path):
    model = build_model(apply_convention(yaml_of(detector, tmp_path), "mmdet"))
    assert convention_differences(model, "mmdet") == []
    if detector == "paa":  # what its labels and losses follow is set, too
        matcher, criterion = model.matcher, model.criterion
        assert (matcher.low_quality_override, matcher.giou_cost_weight) == (True, 1.3)
        assert (criterion.floor_by_images, criterion.floor_per_image) == (True, False)
        assert (model.test_thresh_on, model.score_voting) == ("score", 0.025)
    if detector == "ddod":
        assert model.criterion.shared_counter
    if detector in ("ddod", "gfl", "iou"):
        assert model.criterion.floor_per_image
    authors = yaml_of(detector, tmp_path)
    if detector in ("simota", "iou"):
        build_model(apply_convention(authors, "authors"))
    else:
        with pytest.raises(ValueError, match=r"the convention of .* is 'mmdet', got 'authors'"):
            apply_convention(authors, "authors")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_losses_that_do_not_count_positives(convention):
    model = get_config("demo/atss_simota_shapes_wide").model
    criterion = instantiate(apply_convention(model, convention).criterion)
    assert not criterion.floor_per_image


@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_a_second_convention_takes_back_the_first(kind, tmp_path):
    def new():
        return get_cfg() if kind == "yaml" else toy.config(tmp_path)

    once, twice = new(), new()
    apply_convention(once, "mmdet")
    apply_convention(apply_convention(twice, "authors"), "mmdet")
    if kind == "yaml":
        # A shift of nothing: the same anchors.
        assert twice.MODEL.ATSS.ANCHOR_GENERATOR.CENTER_SHIFT == 0
        twice.MODEL.ANCHOR_GENERATOR.NAME = once.MODEL.ANCHOR_GENERATOR.NAME
    else:
        assert twice.model.anchor_generator.pop("center_shift") == 0
        twice.model.anchor_generator._target_ = once.model.anchor_generator._target_
    assert once == twice


def test_centerness_weights_without_centerness_follow_the_authors_geometry():
    """A center 8, 8, 24 and 24 px from the sides: half a pixel less of each in the root."""
    criterion = instantiate(
        apply_convention(get_config("coco/atss_vfl_R_50_FPN_1x"), "authors").model.criterion
    )
    criterion.bind(box2box_transform=PointDistances(), num_classes=1)
    anchors, boxes = torch.tensor([[-24.0, -24, 40, 40]]), torch.tensor([[0.0, 0, 32, 32]])
    sides = Positives(
        slice(None), torch.tensor([True]), torch.tensor([0]), anchors, boxes, boxes, None, None
    )
    weights = criterion._box_weights(sides, torch.ones(1), torch.zeros(1, 1))
    assert weights.item() == pytest.approx(7.5 / 23.5)


@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_a_paa_that_becomes_atss_neither_votes_nor_thresholds_scores(kind, tmp_path):
    if kind == "yaml":
        cfg = apply_convention(yaml_of("paa", tmp_path), "mmdet")
        cfg.merge_from_list(["MODEL.ATSS.MATCHER.NAME", "ATSSMatcher"])
        cfg.merge_from_list(["MODEL.ATSS.CRITERION.NAME", "ATSSCriterion"])
        cfg.MODEL.ATSS.IOU_BRANCH_CRITERION.FLOOR_BY_IMAGES = False
        node = apply_convention(cfg, "authors").MODEL.ATSS
        assert (node.TEST_THRESH_ON, node.SCORE_VOTING) == ("class_score", None)
        return
    model = apply_convention(get_config("coco/paa_R_50_FPN_1x"), "mmdet").model
    assert (model.test_thresh_on, model.score_voting) == ("score", 0.025)
    atss = get_config("coco/atss_R_50_FPN_1x").model
    model.matcher, model.criterion = atss.matcher, atss.get("criterion")
    apply_convention(model, "authors")
    assert (model.test_thresh_on, model.score_voting) == ("class_score", None)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_points_have_an_inset_in_place_of_a_clamp(convention, tmp_path):
    cfg = toy.config(tmp_path)
    cfg.model.box2box_transform = L(PointDistances)()
    model = instantiate(apply_convention(cfg, convention).model)
    assert model.box2box_transform.inset == CONVENTIONS[convention].inset
    assert convention_differences(model, convention) == []


class RuleWithMore(TopKMatcher):
    """A user's subclass that passes on what it does not know."""

    def __init__(self, *, more=1, **kwargs):
        super().__init__(**kwargs)
        self.more = more


def test_a_subclass_of_a_rule_gets_the_inset():
    model = get_config("coco/atss_R_50_FPN_1x").model
    model.matcher = L(RuleWithMore)()
    apply_convention(model, "authors")
    assert instantiate(model.matcher).inset == 0.5


def test_matchers_without_an_inset_stay(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.model.matcher = L(Recorder)()
    assert type(instantiate(apply_convention(cfg, "authors").model).matcher) is Recorder
    for matcher in (L(TopKMatcher)(), L(CenterSamplingMatcher)(strides=[8, 16])):
        cfg.model.matcher = matcher
        assert instantiate(apply_convention(cfg, "authors").model).matcher.inset == 0.5


# ------------------------------------------------------------------------- agreement of a model


DIFFERENCES = {
    "anchor_generator.offset": lambda m: setattr(m.anchor_generator, "offset", 0.25),
    "anchor_generator.center_shift": lambda m: setattr(m.anchor_generator, "center_shift", 0.25),
    "box2box_transform.inset": lambda m: setattr(m, "box2box_transform", PointDistances(inset=1.0)),
    "test_score_type": lambda m: setattr(m, "test_score_type", "other"),
    "test_rank_by": lambda m: setattr(m, "test_rank_by", "other"),
    "test_thresh_on": lambda m: setattr(m, "test_thresh_on", "score"),
    "score_voting": lambda m: setattr(m, "score_voting", 0.025),
    "pixel_mean": lambda m: m.pixel_mean.add_(1),
    "pixel_std": lambda m: m.pixel_std.add_(1),
    "input_format": lambda m: setattr(m, "input_format", "other"),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_difference_is_seen(convention, tmp_path):
    model = instantiate(apply_convention(toy.config(tmp_path), convention).model)
    assert convention_differences(model, convention) == []
    for name, change in DIFFERENCES.items():
        changed = copy.deepcopy(model)
        change(changed)
        (difference,) = convention_differences(changed, convention)
        assert difference.startswith(f"{name} is ")


def test_a_model_of_the_paper_differs_from_mmdetection_in_this():
    model = instantiate(get_config("coco/atss_R_50_FPN_1x").model)
    assert [
        difference.partition(" is ")[0] for difference in convention_differences(model, "mmdet")
    ] == [
        "anchor_generator.offset",
        "box2box_transform",
        "backbone.p7_relu",
        "backbone.bottom_up.stages.stride_in_1x1",
        "test_score_type",
        "test_rank_by",
        "pixel_mean",
        "pixel_std",
        "input_format",
    ]
    assert convention_differences(model, "authors") == [
        "anchor_generator.center_shift is 0.0, not 0.5",
        "pixel_mean is [103.53, 116.28, 123.675], not [102.9801, 115.9465, 122.7717]",
    ]


# ------------------------------------------------------------------------------------- anchors


def shifted(center_shift, **options):
    options = {"sizes": [[32], [64]], "aspect_ratios": [1.0], "strides": [8, 16], **options}
    return ShiftedAnchorGenerator(center_shift=center_shift, **options)


def test_shifted_anchors_by_hand():
    anchors = shifted(0.5)([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)])
    # The center of the second one is (1.5 x 8 + 0.5, 0.5 x 8 + 0.5).
    assert anchors[0].tensor[1].tolist() == [12.5 - 16, 4.5 - 16, 12.5 + 16, 4.5 + 16]
    assert anchors[1].tensor.tolist() == [[8.5 - 32, 8.5 - 32, 8.5 + 32, 8.5 + 32]]


@pytest.mark.parametrize("options", [{}, {"offset": 0.0, "aspect_ratios": [0.5, 2.0]}])
def test_anchors_shifted_by_nothing_are_detectron2s(options):
    features = [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4)]
    stock = DefaultAnchorGenerator(
        **{"sizes": [[32], [64]], "aspect_ratios": [1.0], "strides": [8, 16], **options}
    )
    for ours, theirs in zip(shifted(0.0, **options)(features), stock(features), strict=True):
        assert torch.equal(ours.tensor, theirs.tensor)


def test_the_anchors_of_the_authors():
    cfg = r_50("authors")
    features = [torch.zeros(1, 1, *shape) for shape in published["level_shapes"].tolist()]
    anchors = torch.cat([a.tensor for a in instantiate(cfg.model.anchor_generator)(features)])
    theirs = torch.from_numpy(published["authors.atss_box.anchors"])
    torch.testing.assert_close(anchors, theirs, rtol=0, atol=0)


# -------------------------------------------------------------------------------------- errors


def test_what_a_convention_does_not_know_is_refused_before_anything_is_changed(tmp_path):
    for key, target, message in (
        ("anchor_generator._target_", toy.ToyBackbone, "anchor_generator .*, got ToyBackbone"),
        ("box2box_transform._target_", Box2BoxTransformLinear, "got .*Box2BoxTransformLinear"),
        ("_target_", RetinaNet, "for the model ATSS, got RetinaNet"),
    ):
        cfg = toy.config(tmp_path)
        OmegaConf.update(cfg.model, key, target)
        before = copy.deepcopy(cfg)
        with pytest.raises(ValueError, match=message):
            apply_convention(cfg, "authors")
        assert cfg == before
    cfg = get_cfg()
    with pytest.raises(ValueError, match="convention must be one of authors, mmdet, got 'torch'"):
        apply_convention(cfg, "torch")
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    with pytest.raises(ValueError, match="ShiftedAnchorGenerator, got RotatedAnchorGenerator"):
        apply_convention(cfg, "authors")
