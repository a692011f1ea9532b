"""GFL: numbers of mmdetection, the coder of distributions, and its warning."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2 import get_config
from atss_d2.modeling import (
    ATSSHead,
    ATSSMatcher,
    DistanceDistributions,
    SoftTargetCriterion,
    Targets,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import focal_loss
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.postprocess import postprocess
from atss_d2.modeling.predictions import predictions_from_maps
from atss_d2.modeling.scene import scene_of_instances
from tests import quality_scene
from tests.quality_scene import (
    NUM_CLASSES,
    assert_published_gradients,
    grid_sizes,
    instances,
    load_published,
    of_levels,
    tensor,
)

NUM_BINS = 17


@pytest.fixture(scope="module")
def head():
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=32)] * 5,
        num_classes=NUM_CLASSES,
        num_box_values=4 * NUM_BINS,
        conv_dims=[32] * 4,
        conv_bias=False,
        with_centerness=False,
    )
    return load_published(head, "gfl")


@pytest.fixture(scope="module")
def anchors():
    return quality_scene.anchors()


def as_predictions(maps):
    return predictions_from_maps(
        maps, num_anchors=[1] * 5, num_classes=NUM_CLASSES, num_box_values=4 * NUM_BINS
    )


def labeled(anchors, with_boxes=(True, True)):
    """The scene's targets, with or without the boxes of its images."""
    scene = scene_of_instances(
        anchors, instances(with_boxes), grid_sizes(), num_classes=NUM_CLASSES
    )
    assignment = ATSSMatcher(num_anchors=1).assign(scene)
    return assignment, look_up(assignment, scene, num_classes=NUM_CLASSES)


def gfl_criterion(**arguments):
    criterion = SoftTargetCriterion(**arguments)
    coder = DistanceDistributions(num_bins=NUM_BINS)
    criterion.bind(box2box_transform=coder, num_classes=NUM_CLASSES)
    return criterion


def test_maps_of_mmdetection(head):
    maps = head(of_levels("feat"))
    for ours, theirs in zip(maps, (of_levels("gfl.cls"), of_levels("gfl.reg"))):
        for level, expected in zip(ours, theirs):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-4)


def test_labels_of_mmdetection(anchors):
    assignment, targets = labeled(anchors)
    first = len(tensor("gt_boxes_0"))
    for i in range(2):
        expected = tensor(f"gfl.assigned_{i}")
        expected = torch.where(expected >= 0, expected + i * first, expected)
        assert torch.equal(assignment.matched_idxs[i], expected)
    assert torch.equal(targets.labels, tensor("gfl.labels"))


@pytest.mark.parametrize(
    ("case", "with_boxes"),
    [("gfl", (True, True)), ("gfl.empty0", (False, True)), ("gfl.empty", (False, False))],
)
def test_losses_of_mmdetection(anchors, case, with_boxes):
    predictions = as_predictions([of_levels("gfl.cls"), of_levels("gfl.reg")])
    _, targets = labeled(anchors, with_boxes)
    losses = gfl_criterion(floor_per_image=True)(predictions, targets)
    names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_dfl": "loss_dfl"}
    assert losses.keys() == names.keys()
    for ours, theirs in names.items():
        expected = tensor(f"{case}.{theirs}")
        torch.testing.assert_close(losses[ours].double(), expected, rtol=1e-5, atol=1e-7)


def test_losses_of_mmdetection_leave_out_ignored_anchors(anchors):
    """It leaves out anchors beyond an image's own padding; here, they are ignored."""
    _, targets = labeled(anchors)
    boxes = [tensor("gt_boxes_0"), tensor("gt_boxes_1") * 0.6]
    classes = [tensor("gt_classes_0"), tensor("gt_classes_1")]
    assigned = [tensor("gfl.assigned_0"), tensor("gfl.own_pad.assigned_1")]
    labels, matched = targets.labels.clone(), targets.boxes.clone()
    for i in range(2):
        is_positive = assigned[i] >= 0
        labels[i] = torch.where(is_positive, classes[i][assigned[i]], NUM_CLASSES)
        matched[i] = torch.where(is_positive[:, None], boxes[i][assigned[i]], targets.anchors)
    labels[tensor("gfl.own_pad.label_weights") == 0] = -1
    targets = Targets(targets.anchors, labels, matched)
    predictions = as_predictions([of_levels("gfl.cls"), of_levels("gfl.reg")])
    losses = gfl_criterion(floor_per_image=True)(predictions, targets)
    for ours, theirs in (("loss_cls", "cls"), ("loss_box_reg", "bbox"), ("loss_dfl", "dfl")):
        expected = tensor(f"gfl.own_pad.loss_{theirs}")
        torch.testing.assert_close(losses[ours].double(), expected, rtol=1e-5, atol=1e-7)


def test_gradients_of_mmdetection(head, anchors):
    head.zero_grad()
    features = [level.requires_grad_() for level in of_levels("feat")]
    _, targets = labeled(anchors)
    losses = gfl_criterion(floor_per_image=True)(as_predictions(head(features)), targets)
    sum(losses.values()).backward()
    assert_published_gradients(head, "gfl", "gfl", rtol=1e-4)
    for level in (2, 3, 4):
        expected = tensor(f"gfl.grad_feat_{level}")
        torch.testing.assert_close(features[level].grad, expected, rtol=1e-3, atol=1e-7)


def sort_by_score(boxes, scores, classes):
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], classes[order]


def test_detections_of_mmdetection(anchors):
    found = postprocess(
        as_predictions([of_levels("gfl.cls"), of_levels("gfl.reg")]),
        anchors,
        [(int(h), int(w)) for w, h in tensor("sizes_wh")],
        nms_thresh=0.6,
        max_detections=100,
        box2box_transform=DistanceDistributions(num_bins=NUM_BINS),
    )
    for i, detections in enumerate(found):
        theirs = sort_by_score(
            *(tensor(f"gfl.det_{part}_{i}") for part in ("boxes", "scores", "classes"))
        )
        boxes, scores, classes = sort_by_score(*detections)
        torch.testing.assert_close(scores, theirs[1], rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes, theirs[0], rtol=0, atol=1e-3)
        assert torch.equal(classes, theirs[2])


# The coder


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_bins=st.integers(2, 20), scale=st.sampled_from([1.0, 8.0]))
def test_boxes_are_the_means_of_the_distributions(seed, num_bins, scale):
    rng = torch.Generator().manual_seed(seed)
    coder = DistanceDistributions(num_bins=num_bins, anchor_scale=scale)
    corners = torch.rand(3, 2, generator=rng) * 100
    anchors = torch.cat((corners, corners + 8 * scale), dim=1)
    logits = torch.randn(3, 4 * num_bins, generator=rng) * 3
    boxes = coder.apply_deltas(logits, anchors)
    for row in range(3):
        x, y = ((anchors[row, i] + anchors[row, i + 2]).item() / 2 for i in (0, 1))
        means = [
            sum(j * p for j, p in enumerate(side.double().softmax(0).tolist())) * 8
            for side in logits[row].view(4, num_bins)
        ]
        expected = [x - means[0], y - means[1], x + means[2], y + means[3]]
        assert boxes[row].tolist() == pytest.approx(expected, abs=1e-3)
    assert torch.equal(
        coder.get_deltas(anchors, boxes),
        PointDistances(anchor_scale=scale).get_deltas(anchors, boxes),
    )


def test_logits_in_half_precision_are_computed_in_float32():
    coder = DistanceDistributions()
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    logits = torch.linspace(-30, 30, 68).half()[None]
    torch.testing.assert_close(
        coder.apply_deltas(logits, anchors), coder.apply_deltas(logits.float(), anchors)
    )
    assert not list(coder.state_dict())  # the bins are not weights


def test_a_coder_needs_two_bins():
    with pytest.raises(ValueError, match="num_bins must be >= 2, got 1"):
        DistanceDistributions(num_bins=1)


# The criterion


def predictions_and_targets(box, label=0, num_bins=NUM_BINS):
    """One anchor of stride 8 around (32, 32) with equal logits, and its box."""
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    maps = [[torch.zeros(1, 2, 1, 1)], [torch.zeros(1, 4 * num_bins, 1, 1)]]
    predictions = predictions_from_maps(
        maps, num_anchors=[1], num_classes=2, num_box_values=4 * num_bins
    )
    return predictions, Targets(anchors, torch.tensor([[label]]), torch.tensor([[box]]))


def criterion_of(**arguments):
    criterion = SoftTargetCriterion(**arguments)
    criterion.bind(box2box_transform=DistanceDistributions(), num_classes=2)
    return criterion


def test_positives_too_far_for_the_bins_are_counted_and_reported(caplog):
    criterion = criterion_of()
    far = predictions_and_targets([-100.0, 0.0, 64.0, 64.0])  # 132 px are 16.5 strides
    near = predictions_and_targets([-95.0, 0.0, 64.0, 64.0])  # 127 px are 15.875
    with EventStorage(0) as storage, caplog.at_level(logging.WARNING):
        criterion(*near)
        assert storage.latest()["atss/num_too_far"][0] == 0
        assert not caplog.messages
        criterion(*far)
        criterion(*far)
    assert storage.latest()["atss/num_too_far"][0] == 1
    (message,) = caplog.messages  # once
    assert "1 positives of a batch have a side farther from their anchor than 15.9" in message
    assert "in yaml, MODEL.ATSS.DISTANCE_DISTRIBUTIONS.NUM_BINS" in message


def test_weights_of_the_box_losses():
    box = [0.0, 0.0, 128.0, 64.0]
    predictions, targets = predictions_and_targets(box)
    decoded = DistanceDistributions().apply_deltas(predictions.regression[0][0], targets.anchors)
    losses = {}
    for weights in ("score", "quality", "centerness", "none"):
        losses[weights] = criterion_of(box_weights=weights)(predictions, targets)
    # One positive: where the floor of the sum is tiny, its weight cancels.
    full = losses["none"]["loss_box_reg"]
    torch.testing.assert_close(losses["centerness"]["loss_box_reg"], full)
    torch.testing.assert_close(losses["score"]["loss_box_reg"], full / 2)
    left, top, right, bottom = decoded[0].tolist()
    overlap = (min(right, 128) - max(left, 0)) * (min(bottom, 64) - max(top, 0))
    union = (right - left) * (bottom - top) + 128 * 64 - overlap
    torch.testing.assert_close(losses["quality"]["loss_box_reg"], full * (overlap / union))


OPTIONS = [
    {},
    {"floor_per_image": True},
    {"cls_loss": "varifocal", "box_weights": "centerness"},
    {"cls_loss": "varifocal", "box_weights": "quality", "normalized_by": "quality"},
]
OPTION_IDS = ["gfl", "mmdetection", "vfl", "rtmdet"]


def losses_and_gradients(anchors, options, dtype=torch.float32):
    maps = [of_levels("gfl.cls"), of_levels("gfl.reg")]
    maps = [[level.to(dtype).requires_grad_() for level in levels] for levels in maps]
    losses = gfl_criterion(**options)(as_predictions(maps), labeled(anchors)[1])
    return losses, torch.autograd.grad(sum(losses.values()), maps[0] + maps[1])


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
def test_losses_are_the_same_by_the_way_of_a_gpu(anchors, options, monkeypatch):
    expected = losses_and_gradients(anchors, options)
    monkeypatch.setattr(positives_module, "positive_rows", lambda _: slice(None))
    monkeypatch.setattr(focal_loss, "_is_on_cpu", lambda _: False)
    found = losses_and_gradients(anchors, options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
def test_autocast_does_not_change_the_losses(anchors, options):
    """Of maps in bfloat16, which are computed in float32."""
    expected = losses_and_gradients(anchors, options, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_and_gradients(anchors, options, torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for name, loss in losses_and_gradients(anchors, options)[0].items():
        torch.testing.assert_close(found[0][name], loss, rtol=0.02, atol=0)


def test_soft_targets_of_the_rule_come_first():
    predictions, targets = predictions_and_targets([0.0, 0.0, 128.0, 64.0])
    by_rule = targets._replace(soft=torch.tensor([[1.0]]))
    criterion = criterion_of(cls_loss="varifocal", normalized_by="quality")
    # y = 1: BCE(0.5, 1) = log 2; the other class 0.75 x 0.25 log 2.
    expected = (1 + 0.75 * 0.25) * np.log(2)
    assert criterion(predictions, by_rule)["loss_cls"].item() == pytest.approx(expected)


def test_a_gradient_for_the_box_comes_from_its_own_losses_only():
    """The IoU is a target: the classification loss has no gradient for boxes."""
    predictions, targets = predictions_and_targets([0.0, 0.0, 128.0, 64.0])
    predictions.regression[0].requires_grad_()
    predictions.logits[0].requires_grad_()
    losses = criterion_of()(predictions, targets)
    (grad,) = torch.autograd.grad(
        losses["loss_cls"], predictions.regression, allow_unused=True, retain_graph=True
    )
    assert grad is None
    (grad,) = torch.autograd.grad(losses["loss_box_reg"], predictions.logits, allow_unused=True)
    assert grad is None  # the score is a weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cls_loss": "focal"}, "cls_loss must be one of"),
        ({"box_weights": "iou"}, "box_weights must be one of"),
        ({"normalized_by": "none"}, "normalized_by must be one of"),
        ({"box_reg_loss_type": "smooth_l1"}, "box_reg_loss_type must be one of"),
        ({"varifocal_alpha": 0.5}, "varifocal_alpha has no effect with cls_loss=quality_focal"),
        ({"floor_per_image": True, "normalized_by": "quality"}, "floor_per_image has no effect"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftTargetCriterion(**arguments)


@pytest.mark.parametrize(
    ("config", "with_centerness", "message"),
    [
        ("gfl", True, "has no loss for the quality that the head predicts: set head.with_cent"),
        ("atss_vfl", True, "has no loss for the quality"),
        ("atss_iou", False, "trains a quality, which the head does not predict: set head.with"),
    ],
)
def test_a_head_that_does_not_fit_the_criterion_is_refused_at_once(
    config, with_centerness, message
):
    model = get_config(f"demo/{config}_shapes_wide").model
    model.head.with_centerness = with_centerness
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        instantiate(model)


def test_autocast_does_not_round_boxes(anchors):
    """The mean of a distribution is a matrix product, which autocast computes in half precision."""
    maps = as_predictions([of_levels("gfl.cls"), of_levels("gfl.reg")])
    coder = DistanceDistributions(num_bins=NUM_BINS)
    sizes = [(int(h), int(w)) for w, h in tensor("sizes_wh")]
    expected = postprocess(maps, anchors, sizes, box2box_transform=coder)
    with torch.autocast("cpu", torch.bfloat16):
        found = postprocess(maps, anchors, sizes, box2box_transform=coder)
    assert all(len(boxes) for boxes, *_ in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
