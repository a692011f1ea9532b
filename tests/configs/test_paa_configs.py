"""The configs of PAA: the authors' numbers, and nothing else changed."""

import copy

import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model

from atss_d2.config import load_config
from atss_d2.modeling import IoUBranchCriterion, PAAMatcher
from tests.configs.test_configs import NUM_PARAMETERS, ROOT

PARTS = ("matcher", "criterion", "score_voting")


def test_the_model_of_the_authors(configs):
    with torch.device("meta"):
        model = instantiate(configs["coco/paa_R_50_FPN_1x"].model)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS["atss_R_50_FPN_1x"]
    matcher, criterion = model.matcher, model.criterion
    assert type(matcher) is PAAMatcher
    assert (matcher.topk, matcher.iou_thresh, matcher.giou_cost_weight) == (9, 0.1, 1.0)
    assert (matcher.low_quality_override, matcher.keep_undivided) == (False, True)
    assert type(criterion) is IoUBranchCriterion
    assert (criterion.box_reg_loss_weight, criterion.centerness_loss_weight) == (1.3, 0.5)
    assert criterion.centerness_weighted_box_loss
    assert not criterion.floor_by_images
    options = model.pre_nms_options()
    assert (options["score_thresh"], options["thresh_on"]) == (0.05, "class_score")
    assert (options["score_type"], options["rank_by"]) == ("sqrt", "score")
    assert (model.test_nms_thresh, model.score_voting) == (0.6, 0.025)


def test_they_differ_from_atss_in_three_parts_only(configs):
    for name, parent in (
        ("coco/paa_R_50_FPN_1x", "coco/atss_R_50_FPN_1x"),
        ("demo/paa_shapes_wide", "demo/atss_shapes_wide"),
    ):
        cfg, atss = copy.deepcopy(configs[name]), copy.deepcopy(configs[parent])
        assert cfg.model.score_voting == 0.025
        for key in PARTS:
            cfg.model.pop(key)
            atss.model.pop(key, None)
        cfg.train.output_dir = atss.train.output_dir
        assert cfg == atss


def test_yaml_keys_build_the_same(configs):
    cfg = load_config(ROOT / "configs/yaml/atss_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "meta"
    node = cfg.MODEL.ATSS
    node.MATCHER.NAME, node.CRITERION.NAME = "PAAMatcher", "IoUBranchCriterion"
    node.BOX_REG_LOSS_WEIGHT = 1.3
    node.IOU_BRANCH_CRITERION.update(QUALITY_WEIGHTED_BOX_LOSS=True, QUALITY_LOSS_WEIGHT=0.5)
    node.SCORE_VOTING = 0.025
    with torch.device("meta"):
        found = build_model(cfg)
        expected = instantiate(configs["coco/paa_R_50_FPN_1x"].model)
    for part in ("matcher", "criterion"):
        ours, theirs = (
            {k: v for k, v in vars(getattr(x, part)).items() if isinstance(v, (int, float, str))}
            for x in (found, expected)
        )
        assert ours == theirs
        assert len(ours) > 5
    assert found.score_voting == expected.score_voting
