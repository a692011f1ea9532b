"""ATSSRPN in Detectron2's R-CNNs: two settings, from lazy and yaml configs."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import StandardRPNHead
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from atss_d2 import ATSSHead, ATSSMatcher, IoUMatcher, add_atss_config, use_atss
from atss_d2.commands.export import export
from atss_d2.export.checks import check_exportable
from atss_d2.integration import ATSSRPN, ATSSRPNHead
from atss_d2.integration.rpn_head import sqrt_product_logits
from atss_d2.modeling import (
    ATSSCriterion,
    DistanceDistributions,
    IoUBranchCriterion,
    TaskAlignedCriterion,
    TOODHead,
)
from atss_d2.modeling.box_coding import PointDistances
from tests import rcnn_models as r
from tests.detectron2_models import model_zoo
from tests.loss_loops import losses_by_loops

SETTINGS = {"sampled": False, "focal": True}


def batch_for(kind):
    images = r.batch()
    if kind.startswith("keypoint"):  # of persons only
        for x in images:
            x["instances"].gt_classes.zero_()
    return images


@pytest.mark.parametrize("focal", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", r.KINDS)
def test_every_r_cnn_of_the_zoo_trains_and_detects(kind, focal):
    node = r.with_atss(r.rcnn_config(kind, with_masks=True), focal=focal)
    model = r.build(node)
    images = batch_for(kind)
    stock = set(r.losses_of(r.build(r.rcnn_config(kind, with_masks=True)), images))
    gradients = r.gradients_of(model, images)
    assert all(g.isfinite().all() for g in gradients.values())
    parts = [name for name in gradients if name.startswith("proposal_generator")]
    assert len(parts) == (8 if focal else 6)
    assert all(gradients[name].any() for name in parts)
    losses = r.losses_of(model, images)
    assert set(losses) == stock | ({"loss_rpn_iou"} if focal else set())
    assert all(loss > 0 for name, loss in losses.items() if "rpn" in name)
    with torch.no_grad():
        found = model.eval()(images)[0]
    assert len(found["instances"]) > 0
    assert ("panoptic_seg" in found) == (kind == "panoptic_fpn")


def test_candidates_are_27_per_level():
    model = r.build(r.with_atss(r.rcnn_config()))
    matcher = model.proposal_generator.anchor_matcher
    assert (matcher.topk, matcher.num_anchors) == (9, 3)
    anchors = [Boxes(torch.rand(500, 4)) for _ in r.STRIDES]
    scene = SimpleNamespace(
        anchors=[a.tensor for a in anchors], boxes=torch.rand(2, 4), grid_sizes=None
    )
    candidates = matcher._candidates(scene, torch.cat(scene.anchors))
    assert candidates.shape == (2, 3 * 27)


# ------------------------------------------------------------------ the setting "sampled"


def proposals_of(model, images):
    model.eval()
    with torch.no_grad():
        prepared = model.preprocess_image(images)
        return model.proposal_generator(prepared, model.backbone(prepared.tensor))[0]


def same_to_the_last_bit(model, stock, images):
    losses, expected = r.losses_of(model, images), r.losses_of(stock, images)
    assert list(losses) == list(expected)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    gradients = r.gradients_of(model, images)
    torch.testing.assert_close(gradients, r.gradients_of(stock, images), rtol=0, atol=0)
    for ours, theirs in zip(proposals_of(model, images), proposals_of(stock, images), strict=True):
        assert len(ours) == len(theirs) > 5
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)


def test_with_detectron2s_rule_it_is_detectron2s_rpn():
    node = r.rcnn_config()
    node.proposal_generator._target_ = ATSSRPN
    model, stock = r.build(node), r.build(r.rcnn_config())
    assert list(model.state_dict()) == list(stock.state_dict())
    same_to_the_last_bit(model, stock, r.batch())


def test_with_the_same_labels_it_is_detectron2s_rpn():
    model, stock = r.build(r.with_atss(r.rcnn_config())), r.build(r.rcnn_config())
    rpn = stock.proposal_generator
    rpn.label_and_sample_anchors = model.proposal_generator.label_and_sample_anchors
    same_to_the_last_bit(model, stock, r.batch())
    del rpn.label_and_sample_anchors
    images = r.batch()
    name = "loss_rpn_cls"
    assert r.losses_of(model, images)[name] != r.losses_of(stock, images)[name]


# -------------------------------------------------------------------- the setting "focal"


@pytest.mark.parametrize(("loss", "weighted"), [("giou", True), ("smooth_l1", False)])
def test_losses_equal_loops_over_anchors(loss, weighted):
    model = r.build(r.with_atss(r.rcnn_config(), focal=True))
    rpn = model.proposal_generator
    rpn.criterion = ATSSCriterion(
        box_reg_loss_type=loss, centerness_weighted_box_loss=weighted, smooth_l1_beta=0.2
    )
    rpn.box2box_transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    rpn.loss_weight = {"loss_rpn_loc": 3.0}
    view = SimpleNamespace(
        num_classes=1,
        preprocess_image=model.preprocess_image,
        backbone=model.backbone,
        head=rpn.rpn_head,
        anchor_generator=rpn.anchor_generator,
    )
    rpn.rpn_head.num_anchors = 3
    images = r.batch()
    losses = {key: x.item() for key, x in r.losses_of(model, images).items() if "rpn" in key}
    for x in images:  # the loops know classes; an RPN has one
        x["instances"].gt_classes.zero_()
    expected = losses_by_loops(view, images, loss=loss, weighted=weighted, beta=0.2)
    assert losses == pytest.approx(
        {
            "loss_rpn_cls": expected["loss_cls"],
            "loss_rpn_loc": 3 * expected["loss_box_reg"],
            "loss_rpn_centerness": expected["loss_centerness"],
        },
        rel=1e-4,
    )


def test_a_number_weights_all_losses():
    node = r.with_atss(r.rcnn_config(), focal=True)
    expected = r.losses_of(r.build(node))
    node.proposal_generator.loss_weight = 0.5
    for name, loss in r.losses_of(r.build(node)).items():
        factor = 0.5 if "rpn" in name else 1.0
        torch.testing.assert_close(loss, factor * expected[name])


LOGIT = st.floats(-30, 30)


@given(LOGIT, LOGIT)
def test_score_of_a_proposal(x, y):
    x, y = (torch.tensor([v], dtype=torch.float64) for v in (x, y))
    expected = (x.sigmoid() * y.sigmoid()).sqrt()
    torch.testing.assert_close(sqrt_product_logits(x, y).sigmoid(), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_extreme_logits(dtype):
    values = torch.tensor([-1e4, -100, -1, 0, 1, 100, 1e4], dtype=dtype)
    x, y = values.repeat(7), values.repeat_interleave(7)
    found = sqrt_product_logits(x, y)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    expected = (x.double().sigmoid() * y.double().sigmoid()).sqrt().float()
    torch.testing.assert_close(found.sigmoid(), expected)
    grid = found.view(7, 7)  # the higher either logit, the higher the score
    for steps in (grid.diff(dim=0), grid.T.diff(dim=0)):
        assert (steps[:-1] > 0).all()
        assert (steps >= 0).all()  # above 100, the other one decides


def test_proposals_have_probabilities_as_scores():
    model = r.build(r.with_atss(r.rcnn_config(), focal=True))
    images = r.batch()[:1]
    prepared = model.preprocess_image(images)
    maps = list(model.backbone(prepared.tensor).values())
    logits, _, quality = model.proposal_generator.rpn_head(maps)
    scores = [(x.sigmoid() * y.sigmoid()).sqrt().flatten() for x, y in zip(logits, quality)]
    (found,) = proposals_of(model, images)
    best = max(x.max() for x in scores)
    torch.testing.assert_close(found.objectness_logits[0].sigmoid(), best)
    scores = torch.cat(scores)
    distance = (found.objectness_logits.sigmoid()[:, None] - scores).abs().min(dim=1).values
    assert distance.max() < 1e-6


def test_scores_start_at_the_prior():
    head = ATSSRPNHead(in_channels=8, num_anchors=3, prior_prob=0.02)
    logits, deltas, quality = head([torch.zeros(2, 8, 4, 4)])
    assert logits[0].sigmoid().flatten().tolist() == pytest.approx([0.02] * 96)
    assert (deltas[0].shape, quality[0].shape) == ((2, 12, 4, 4), (2, 3, 4, 4))
    assert set(head.state_dict()) == {
        *StandardRPNHead(in_channels=8, num_anchors=3).state_dict(),
        *("ctrness.weight", "ctrness.bias"),
    }


def test_the_head_of_the_detector_proposes_too():
    """Two towers in place of one convolution, as in CenterNet2's first stage."""
    node = r.with_atss(r.rcnn_config(), focal=True)
    node.proposal_generator.head = our_head()
    losses = r.losses_of(r.build(node))
    assert "loss_rpn_iou" in losses
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("focal", SETTINGS.values(), ids=SETTINGS)
def test_half_precision(focal):
    model = r.build(r.with_atss(r.rcnn_config(), focal=focal))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = r.losses_of(model)
    expected = r.losses_of(model)
    for name in losses:
        if "rpn" in name:
            torch.testing.assert_close(losses[name].float(), expected[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_extreme_scores_have_finite_gradients(bias):
    model = r.build(r.with_atss(r.rcnn_config(), focal=True))
    head = model.proposal_generator.rpn_head
    for predictor in (head.objectness_logits, head.ctrness):
        torch.nn.init.constant_(predictor.bias, bias)
    gradients = r.gradients_of(model)
    assert all(g.isfinite().all() for g in gradients.values())
    assert gradients["proposal_generator.rpn_head.objectness_logits.bias"].any()


def test_no_boxes_in_the_batch():
    model = r.build(r.with_atss(r.rcnn_config(), focal=True))
    images = [r.image(), r.image(seed=1)]
    losses = r.losses_of(model, images)
    assert losses["loss_rpn_cls"] > 0
    assert losses["loss_rpn_loc"] == losses["loss_rpn_iou"] == 0
    gradients = r.gradients_of(model, images)
    assert all(g.isfinite().all() for g in gradients.values())
    assert "proposal_generator.rpn_head.ctrness.weight" in gradients  # for DDP


def test_detectron2s_rule_does_not_see_ignore_regions():
    node = r.rcnn_config()
    node.proposal_generator._target_ = ATSSRPN
    rpn = r.build(node).proposal_generator
    anchors = [Boxes(torch.tensor([*r.BOXES, [60.0, 50, 70, 60]]))]
    marked = r.image(r.BOXES, gt_ignore=[False, True, False])["instances"]
    alone = r.image([r.BOXES[0], r.BOXES[2]])["instances"]
    (found,), (boxes,) = rpn.label_and_sample_anchors(anchors, [marked])
    assert found.tolist() == [1, 0, 1, 0]
    (expected,), (their_boxes,) = rpn.label_and_sample_anchors(anchors, [alone])
    assert torch.equal(found, expected)
    assert torch.equal(boxes, their_boxes)


@pytest.mark.parametrize("focal", SETTINGS.values(), ids=SETTINGS)
def test_images_without_annotations(focal):
    model = r.build(r.with_atss(r.rcnn_config(), focal=focal))
    with pytest.raises(ValueError, match="ATSSRPN needs gt_instances in training"):
        r.losses_of(model, [{"image": r.image()["image"]}])


def test_a_proposal_network_logs_what_it_labels():
    model = r.build(r.with_atss(r.rcnn_config(), focal=True))
    with EventStorage() as storage:
        model.train()(r.batch())
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["atss/rpn_num_positives"] > 1
    assert {f"atss/rpn_num_positives_{name}" for name in r.LEVELS} <= set(latest)
    assert not any("loss" in name for name in latest if name.startswith("atss/"))


# --------------------------------------------------------------------------------- yaml


def yaml_config(*overrides):
    """Detectron2's Faster R-CNN of yaml, as small as :func:`rcnn_config`."""
    cfg = get_cfg()
    add_atss_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.BACKBONE.NAME = "build_toy_pyramid"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "ATSSRPN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = r.LEVELS
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    cfg.MODEL.ROI_HEADS.update(NUM_CLASSES=r.NUM_CLASSES, BATCH_SIZE_PER_IMAGE=16)
    cfg.MODEL.ROI_BOX_HEAD.update(NUM_FC=1, FC_DIM=r.CHANNELS)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(overrides))
    return cfg


FOCAL_KEYS = (
    *("MODEL.ATSS.RPN.SAMPLE_ANCHORS", False, "MODEL.RPN.HEAD_NAME", "ATSSRPNHead"),
    *("MODEL.ATSS.CRITERION.NAME", "IoUBranchCriterion"),
)


@pytest.mark.parametrize("focal", SETTINGS.values(), ids=SETTINGS)
def test_yaml_is_lazy(focal):
    model = build_model(yaml_config(*(FOCAL_KEYS if focal else ())))
    node = r.with_atss(r.rcnn_config(), focal=focal)
    lazy = instantiate(node)
    lazy.load_state_dict(model.state_dict())
    torch.testing.assert_close(r.losses_of(model), r.losses_of(lazy), rtol=0, atol=0)


def test_yaml_keys():
    cfg = yaml_config(*FOCAL_KEYS)
    cfg.MODEL.ATSS.MATCHER.TOPK = 5
    cfg.MODEL.ATSS.HEAD.PRIOR_PROB = 0.1
    cfg.MODEL.ATSS.BOX_REG_LOSS_WEIGHT = 3.0
    cfg.MODEL.RPN.LOSS_WEIGHT = 0.5
    rpn = build_model(cfg).proposal_generator
    assert rpn.anchor_matcher.topk == 5
    assert rpn.rpn_head.objectness_logits.bias.sigmoid().tolist() == pytest.approx([0.1] * 3)
    assert (type(rpn.criterion), rpn.criterion.box_reg_loss_weight) == (IoUBranchCriterion, 3.0)
    assert rpn.loss_weight == {"loss_rpn_cls": 0.5, "loss_rpn_loc": 0.5}
    cfg.MODEL.ATSS.HEAD.WITH_CENTERNESS = False
    cfg.MODEL.ATSS.CRITERION.NAME = "ATSSCriterion"
    assert build_model(cfg).proposal_generator.rpn_head.ctrness is None
    cfg.MODEL.ATSS.MATCHER.NAME = "IoUMatcher"
    assert type(build_model(cfg).proposal_generator.anchor_matcher) is IoUMatcher


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("MODEL.ATSS.BOX_CODER", "PointDistances"), "an RPN does not read: leave it at"),
        (FOCAL_KEYS[-2:], "IoUBranchCriterion'.* set MODEL.ATSS.RPN.SAMPLE_ANCHORS False"),
        (FOCAL_KEYS[2:], "IoUBranchCriterion'.* set MODEL.ATSS.RPN.SAMPLE_ANCHORS False"),
        (FOCAL_KEYS[2:4], "a quality, .* or MODEL.ATSS.RPN.SAMPLE_ANCHORS False"),
    ],
)
def test_yaml_keys_without_effect(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model(yaml_config(*keys))


# ------------------------------------------------------------------------------- errors


IOU_RULE = L(Matcher)(thresholds=[0.5], labels=[0, 1])


LEVELS = [ShapeSpec(channels=r.CHANNELS)] * 3


def our_head(**kwargs):
    kwargs = {"num_classes": 1, "num_anchors": 3, **kwargs}
    return L(ATSSHead)(input_shape=LEVELS, conv_dims=[r.CHANNELS], norm="", **kwargs)


class ByPredictions(ATSSMatcher):
    needs_predictions = True


@pytest.mark.parametrize(
    ("focal", "key", "value", "message"),
    [
        (True, "head._target_", StandardRPNHead, "starts with: use ATSSRPNHead"),
        (False, "head._target_", ATSSRPNHead, "with_centerness=False, or a criterion"),
        (True, "box_reg_loss_type", "giou", "=giou .* no effect beside criterion=IoUBranch"),
        (True, "head.with_centerness", False, "set head.with_centerness=True"),
        (True, "head.prior_prob", 0, "prior_prob must be between 0 and 1, got 0"),
        (True, "box2box_transform", L(DistanceDistributions)(), "4 values .* takes 68"),
        (False, "box2box_transform", L(DistanceDistributions)(), "4 values .* takes 68"),
        (False, "box2box_transform", L(PointDistances)(), "needs one anchor .* gives .3, 3, 3"),
        (True, "head", our_head(num_classes=80), "=1, but the head was built for 80 classes"),
        (True, "head", our_head(num_anchors=1), "the head was built for num_anchors=1 .* .3, 3"),
        (True, "head.num_anchors", 1, "the head was built for num_anchors=1 .* gives .3, 3, 3"),
        (False, "anchor_matcher", L(ByPredictions)(), "predictions.* ATSSRPN with a criterion"),
        (False, "anchor_matcher.num_anchors", 1, "num_anchors=1, but the model has .*=3"),
        (True, "anchor_matcher", IOU_RULE, "got Matcher: IoUMatcher is Detectron2's rule"),
    ],
)
def test_parts_that_do_not_fit(focal, key, value, message):
    node = r.with_atss(r.rcnn_config(), focal=focal)
    OmegaConf.update(node.proposal_generator, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError, match=message):
        r.build(node)


def test_a_head_that_does_not_fit_the_box_coder():
    node = r.with_atss(r.rcnn_config(), focal=True)
    generator = node.proposal_generator
    generator.anchor_generator.aspect_ratios = [1.0]
    generator.head = L(TOODHead)(
        input_shape=LEVELS, num_classes=1, conv_dims=[r.CHANNELS] * 2, norm=""
    )
    generator.criterion = L(TaskAlignedCriterion)()
    with pytest.raises(ValueError, match=r"TOODHead .* set box2box_transform to PointDistances"):
        r.build(node)


def test_a_rule_may_look_at_predictions_beside_a_criterion():
    node = r.with_atss(r.rcnn_config(), focal=True)
    node.proposal_generator.anchor_matcher = L(ByPredictions)(topk=9)
    plain = r.with_atss(r.rcnn_config(), focal=True)
    torch.testing.assert_close(r.losses_of(r.build(node)), r.losses_of(r.build(plain)))


# ------------------------------------------------------------------------------- export


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("focal", SETTINGS.values(), ids=SETTINGS)
def test_tracing(focal):
    model = r.build(r.with_atss(r.rcnn_config(), focal=focal)).eval()
    example, other = [r.image(seed=i)["image"].float() for i in (0, 1)]
    adapter = TracingAdapter(model, [{"image": example}]).eval()
    traced = torch.jit.trace(adapter, (example,), check_trace=False)
    with torch.no_grad():
        expected = model([{"image": other}])[0]["instances"]
    assert len(expected) > 3
    boxes, classes, scores, _ = traced(other)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(classes, expected.pred_classes)


FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": torch.Tensor,
    "pred_boxes": Boxes,
    "scores": torch.Tensor,
    "pred_classes": torch.Tensor,
}


def test_scripting():
    """Of models built from yaml: TorchScript rejects the lists of omegaconf."""
    images = [{"image": r.image()["image"]}]
    stock = build_model(yaml_config("MODEL.PROPOSAL_GENERATOR.NAME", "RPN")).eval()
    with torch.no_grad():
        expected = stock.inference(images, do_postprocess=False)[0]
    model = build_model(yaml_config()).eval()
    model.load_state_dict(stock.state_dict())
    for changed in (model, use_atss(stock)):
        scripted = scripting_with_instances(changed, FIELDS)
        found = scripted.inference(images, do_postprocess=False)[0]
        assert len(expected) > 3
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize(
    "keys",
    [
        FOCAL_KEYS,
        (*FOCAL_KEYS[:-1], "ATSSCriterion", "MODEL.ATSS.HEAD.WITH_CENTERNESS", False),
        ("MODEL.RPN.HEAD_NAME", "ATSSRPNHead", "MODEL.ATSS.HEAD.WITH_CENTERNESS", False),
    ],
)
def test_the_setting_focal_cannot_be_scripted(keys):
    model = build_model(yaml_config(*keys)).eval()
    with pytest.raises(ValueError, match="criterion or an ATSSRPNHead .* scripted: use tracing"):
        scripting_with_instances(model, FIELDS)


def test_a_model_of_a_lazy_config_cannot_be_scripted():
    """Nor can Detectron2's own, as the documents say."""
    model = r.build(r.rcnn_config()).eval()
    with pytest.raises(RuntimeError, match="ListConfig"):
        scripting_with_instances(model, FIELDS)


def test_our_exporter_says_what_it_exports():
    model = r.build(r.with_atss(r.rcnn_config())).eval()
    message = "can export an ATSS, got GeneralizedRCNN: trace an R-CNN with"
    with pytest.raises(ValueError, match=message):
        check_exportable(model)
    with pytest.raises(ValueError, match=message):  # and so does the command, before all else
        export(SimpleNamespace(model=model), SimpleNamespace())
