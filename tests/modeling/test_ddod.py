"""DDOD: numbers of mmdetection."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from atss_d2.modeling import (
    ATSSHead,
    DDODCriterion,
    DDODMatcher,
    DecodedPredictions,
    Targets,
)
from atss_d2.modeling.criterion.ddod import level_weights
from atss_d2.modeling.geometry import paired_iou
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.postprocess import postprocess
from atss_d2.modeling.predictions import decode_predictions, predictions_from_maps
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

LOSSES = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_iou": "loss_iou"}
CODER = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


@pytest.fixture(scope="module")
def head():
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=32)] * 5,
        num_classes=NUM_CLASSES,
        conv_dims=[32] * 4,
        conv_bias=False,
        deform_first_conv=True,
    )
    return load_published(head, "ddod")


@pytest.fixture(scope="module")
def anchors():
    return quality_scene.anchors()


def as_predictions(maps):
    return predictions_from_maps(
        maps, num_anchors=[1] * 5, num_classes=NUM_CLASSES, num_box_values=4
    )


def published_predictions():
    return as_predictions([of_levels(f"ddod.{part}") for part in ("cls", "reg", "iou")])


def labeled(anchors, predictions, with_boxes=(True, True)):
    """The scene's assignment and targets, with or without the boxes of its images."""
    scene = scene_of_instances(
        anchors,
        instances(with_boxes),
        grid_sizes(),
        num_classes=NUM_CLASSES,
        predictions=decode_predictions(predictions, anchors, CODER),
    )
    assignment = DDODMatcher(num_anchors=1).assign(scene)
    return scene, assignment, look_up(assignment, scene, num_classes=NUM_CLASSES)


def mmdets_criterion():
    criterion = DDODCriterion(shared_counter=True, floor_per_image=True)
    criterion.bind(box2box_transform=CODER, num_classes=NUM_CLASSES)
    return criterion


def assert_mmdets_losses(losses, case):
    assert losses.keys() == LOSSES.keys()
    for ours, theirs in LOSSES.items():
        expected = tensor(f"{case}.{theirs}")
        torch.testing.assert_close(losses[ours].double(), expected, rtol=1e-5, atol=1e-7)


def test_maps_of_mmdetection(head):
    for ours, part in zip(head(of_levels("feat")), ("cls", "reg", "iou"), strict=True):
        for level, expected in zip(ours, of_levels(f"ddod.{part}")):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-4)


def test_labels_of_mmdetection(anchors):
    scene, assignment, targets = labeled(anchors, published_predictions())
    first = len(tensor("gt_boxes_0"))
    for kind, alpha, found in (
        ("cls", 0.8, assignment.matched_idxs),
        ("reg", 0.5, assignment.box_matched_idxs),
    ):
        for i in range(2):
            expected = tensor(f"ddod.assigned_{kind}_{i}")
            expected = torch.where(expected >= 0, expected + i * first, expected)
            assert torch.equal(found[i], expected)
            rows = (expected >= 0).nonzero()[:, 0]
            box_idxs = expected[rows]
            scores = scene.predictions.logits[i, rows, scene.classes[box_idxs]].sigmoid()
            ious = paired_iou(scene.predictions.boxes[i, rows], scene.boxes[box_idxs])
            costs = torch.zeros(len(expected))
            costs[rows] = scores ** (1 - alpha) * ious**alpha
            torch.testing.assert_close(costs, tensor(f"ddod.cost_{kind}_{i}"), rtol=1e-5, atol=1e-6)
    assert (targets.labels < NUM_CLASSES).sum() == tensor("ddod.num_pos_cls")
    assert (targets.box_labels < NUM_CLASSES).sum() == tensor("ddod.num_pos_reg")


def test_losses_and_counters_of_mmdetection(anchors):
    predictions = published_predictions()
    _, _, targets = labeled(anchors, predictions)
    criterion = mmdets_criterion()
    of_cls, of_boxes = torch.zeros(2, 5, dtype=torch.int64)
    for step, case in enumerate(("ddod", "ddod.step2"), start=1):
        assert_mmdets_losses(criterion(predictions, targets), case)
        of_cls = criterion.num_positives[0]
        for name, counts in (("cls", of_cls + of_boxes), ("reg", criterion.num_positives.sum(0))):
            expected = tensor(f"{case}.level_weights_{name}")
            torch.testing.assert_close(level_weights(counts), expected, rtol=0, atol=1e-9)
        of_boxes = criterion.num_positives[1].clone()
        assert torch.equal((of_cls + of_boxes).double(), step * tensor("ddod.counter"))


@pytest.mark.parametrize(
    ("case", "with_boxes"), [("empty0", (False, True)), ("empty", (False, False))]
)
def test_losses_of_mmdetection_without_boxes(anchors, case, with_boxes):
    predictions = published_predictions()
    _, _, targets = labeled(anchors, predictions, with_boxes)
    assert_mmdets_losses(mmdets_criterion()(predictions, targets), f"ddod.{case}")


def test_losses_of_mmdetection_leave_out_ignored_anchors(anchors):
    """It leaves out anchors beyond an image's own padding; here, they are ignored."""
    predictions = published_predictions()
    decoded = decode_predictions(predictions, anchors, CODER)
    is_used = tensor("gfl.own_pad.label_weights") > 0  # (2, R), the same in all heads
    sizes = [len(level) for level in anchors]
    labels, box_labels, matched = [], [], []
    for i, scale in enumerate((1.0, 0.6)):
        used = is_used[i]
        scene = scene_of_instances(
            [x[u] for x, u in zip(anchors, used.split(sizes))],
            [
                Instances(
                    (288, 224),
                    gt_boxes=Boxes(tensor(f"gt_boxes_{i}") * scale),
                    gt_classes=tensor(f"gt_classes_{i}"),
                )
            ],
            None,
            num_classes=NUM_CLASSES,
            predictions=DecodedPredictions(
                *(x[i : i + 1, used] for x in (decoded.logits, decoded.boxes))
            ),
        )
        assignment = DDODMatcher(num_anchors=1).assign(scene)
        found = look_up(assignment, scene, num_classes=NUM_CLASSES)
        for everything, values in ((labels, found.labels), (box_labels, found.box_labels)):
            everything.append(torch.full((len(used),), -1))
            everything[-1][used] = values[0]
        matched.append(torch.cat(anchors))
        matched[-1][used] = found.boxes[0]
    targets = Targets(
        torch.cat(anchors),
        torch.stack(labels),
        torch.stack(matched),
        box_labels=torch.stack(box_labels),
    )
    assert (targets.labels == -1).any()
    assert_mmdets_losses(mmdets_criterion()(predictions, targets), "ddod.own_pad")


def test_gradients_of_mmdetection(head, anchors):
    head.zero_grad()
    features = [level.requires_grad_() for level in of_levels("feat")]
    predictions = as_predictions(head(features))
    _, _, targets = labeled(anchors, predictions)
    losses = mmdets_criterion()(predictions, targets)
    sum(losses.values()).backward()
    assert_published_gradients(head, "ddod", "ddod", rtol=1e-4)
    for level in (2, 3, 4):
        expected = tensor(f"ddod.grad_feat_{level}")
        torch.testing.assert_close(features[level].grad, expected, rtol=1e-3, atol=1e-6)


def test_detections_of_mmdetection(anchors):
    found = postprocess(
        published_predictions(),
        anchors,
        [(int(h), int(w)) for w, h in tensor("sizes_wh")],
        score_type="product",
        nms_thresh=0.6,
        max_detections=100,
        box2box_transform=CODER,
    )
    for i, detections in enumerate(found):
        theirs = [tensor(f"ddod.det_{part}_{i}") for part in ("boxes", "scores", "classes")]
        order, their_order = (
            x[1].argsort(descending=True, stable=True) for x in (detections, theirs)
        )
        for part, tolerance in enumerate((1e-3, 1e-5, 0)):
            torch.testing.assert_close(
                detections[part][order], theirs[part][their_order], rtol=0, atol=tolerance
            )
