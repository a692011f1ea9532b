"""DDOD: numbers of mmdetection, its rule by loops, and its counters of positives."""

import math

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2 import get_config
from atss_d2.modeling import (
    ATSSHead,
    ATSSMatcher,
    DDODCriterion,
    DDODMatcher,
    DecodedPredictions,
    Predictions,
    Targets,
)
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.criterion.ddod import level_weights
from atss_d2.modeling.geometry import paired_iou
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.postprocess import postprocess
from atss_d2.modeling.predictions import decode_predictions, predictions_from_maps
from atss_d2.modeling.scene import build_scene, scene_of_instances
from tests import loss_loops
from tests.reference import as_float32, box_iou, published_quality, sigmoid

NUM_CLASSES = 5
NAMES = {
    "atss_cls": "cls_score",
    "atss_reg": "bbox_pred",
    "atss_iou": "ctrness",
    "cls_convs": "cls_subnet",
    "reg_convs": "bbox_subnet",
}
LOSSES = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_iou": "loss_iou"}
CODER = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def numbers(name):
    return torch.from_numpy(np.asarray(published_quality()[name]))


def levels(name):
    return [numbers(f"{name}_{i}") for i in range(5)]


def our_name(key):
    """mmdetection's name of a parameter of the head -> ours."""
    part, *rest = key.split(".")
    if part.endswith("_convs"):
        place, *layer, kind = rest
        layer = ".".join(layer)
        module = str(3 * int(place) + (layer == "gn"))
        if place == "0" and layer != "gn":  # deformable
            module += ".offset" if layer == "conv.conv_offset" else ".conv"
        rest = [module, kind]
    return ".".join([NAMES.get(part, part), *rest])


@pytest.fixture(scope="module")
def head():
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=32)] * 5,
        num_classes=NUM_CLASSES,
        conv_dims=[32] * 4,
        conv_bias=False,
        deform_first_conv=True,
    )
    prefix = "ddod.sd.bbox_head."
    weights = {
        our_name(key.removeprefix(prefix)): numbers(key)
        for key in published_quality()
        if key.startswith(prefix)
    }
    shapes = {name: value.shape for name, value in head.state_dict().items()}
    head.load_state_dict({name: value.reshape(shapes[name]) for name, value in weights.items()})
    return head


@pytest.fixture(scope="module")
def anchors():
    counts = [len(x.flatten()) for x in (level[0, 0] for level in levels("feat"))]
    return list(numbers("anchors").split(counts))


def as_predictions(maps):
    return predictions_from_maps(
        maps, num_anchors=[1] * 5, num_classes=NUM_CLASSES, num_box_values=4
    )


def published_predictions():
    return as_predictions([levels(f"ddod.{part}") for part in ("cls", "reg", "iou")])


def labeled(anchors, predictions, with_boxes=(True, True)):
    """The scene's assignment and targets, with or without the boxes of its images."""
    instances = []
    for i, has_boxes in enumerate(with_boxes):
        boxes = numbers(f"gt_boxes_{i}")[: None if has_boxes else 0]
        classes = numbers(f"gt_classes_{i}")[: len(boxes)]
        instances.append(Instances((288, 224), gt_boxes=Boxes(boxes), gt_classes=classes))
    scene = scene_of_instances(
        anchors,
        instances,
        [tuple(level.shape[-2:]) for level in levels("feat")],
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
        expected = numbers(f"{case}.{theirs}")
        torch.testing.assert_close(losses[ours].double(), expected, rtol=1e-5, atol=1e-7)


def test_maps_of_mmdetection(head):
    for ours, part in zip(head(levels("feat")), ("cls", "reg", "iou"), strict=True):
        for level, expected in zip(ours, levels(f"ddod.{part}")):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-4)


def test_labels_of_mmdetection(anchors):
    scene, assignment, targets = labeled(anchors, published_predictions())
    first = len(numbers("gt_boxes_0"))
    for kind, alpha, found in (
        ("cls", 0.8, assignment.matched_idxs),
        ("reg", 0.5, assignment.box_matched_idxs),
    ):
        for i in range(2):
            expected = numbers(f"ddod.assigned_{kind}_{i}")
            expected = torch.where(expected >= 0, expected + i * first, expected)
            assert torch.equal(found[i], expected)
            rows = (expected >= 0).nonzero()[:, 0]
            box_idxs = expected[rows]
            scores = scene.predictions.logits[i, rows, scene.classes[box_idxs]].sigmoid()
            ious = paired_iou(scene.predictions.boxes[i, rows], scene.boxes[box_idxs])
            costs = torch.zeros(len(expected))
            costs[rows] = scores ** (1 - alpha) * ious**alpha
            torch.testing.assert_close(
                costs, numbers(f"ddod.cost_{kind}_{i}"), rtol=1e-5, atol=1e-6
            )
    assert (targets.labels < NUM_CLASSES).sum() == numbers("ddod.num_pos_cls")
    assert (targets.box_labels < NUM_CLASSES).sum() == numbers("ddod.num_pos_reg")


def test_losses_and_counters_of_mmdetection(anchors):
    predictions = published_predictions()
    _, _, targets = labeled(anchors, predictions)
    criterion = mmdets_criterion()
    for case in ("ddod", "ddod.step2"):
        assert_mmdets_losses(criterion(predictions, targets), case)
        first, second = criterion.num_positives.clone()
        for name, counts in (("cls", first + (second // 2 if case[-1] == "2" else 0)), ("reg", first + second)):
            expected = numbers(f"{case}.level_weights_{name}")
            torch.testing.assert_close(level_weights(counts), expected, rtol=0, atol=1e-9)
        if case == "ddod":
            assert torch.equal((first + second).double(), numbers("ddod.counter"))


@pytest.mark.parametrize(("case", "with_boxes"), [("empty0", (False, True)), ("empty", (False,) * 2)])
def test_losses_of_mmdetection_without_boxes(anchors, case, with_boxes):
    predictions = published_predictions()
    _, _, targets = labeled(anchors, predictions, with_boxes)
    assert_mmdets_losses(mmdets_criterion()(predictions, targets), f"ddod.{case}")
